// pybind11 face of the planner: for tests, and for looking at a mask's work list.
#include "../planner.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <tuple>

namespace py = pybind11;

namespace {

using Ints = py::array_t<int32_t, py::array::c_style>;
using TileTuple = std::tuple<int32_t, int32_t, int32_t, int32_t>;
using SegmentTuple = std::tuple<int32_t, int32_t, uint64_t>;

std::tuple<std::vector<std::vector<TileTuple>>, std::vector<SegmentTuple>> plan(const Ints& batch_ptr,
                                                                                const Ints& q_ranges,
                                                                                const Ints& key_ptr,
                                                                                const Ints& key_ranges, int64_t q_len,
                                                                                int64_t k_len, int tile, bool by_key) {
  const videoar::RangeMaskView mask{batch_ptr.data(),
                                    q_ranges.data(),
                                    key_ptr.data(),
                                    key_ranges.data(),
                                    batch_ptr.size() - 1,
                                    q_ranges.size() / 2,
                                    key_ranges.size() / 2,
                                    q_len,
                                    k_len};
  if (batch_ptr.size() < 2 || key_ptr.size() != mask.rows + 1)
    throw py::value_error("plan: expected batch_ptr of samples + 1 and key_ptr of rows + 1 numbers");
  if (tile < 1 || tile > videoar::kMaxTile) throw py::value_error("plan: expected tile between 1 and 64");
  if (const char* reason = videoar::invalid(mask)) throw py::value_error(std::string("plan: ") + reason);
  const videoar::TilePlan result = by_key ? videoar::plan_keys(mask, tile) : videoar::plan_queries(mask, tile);
  std::vector<std::vector<TileTuple>> tiles(mask.samples);
  for (int64_t b = 0; b < mask.samples; ++b)
    for (int32_t i = result.tile_ptr[b]; i < result.tile_ptr[b + 1]; ++i) {
      const videoar::Tile& t = result.tiles[i];
      tiles[b].emplace_back(t.begin, t.end, t.first, t.last);
    }
  std::vector<SegmentTuple> segments;
  for (const videoar::TileSegment& s : result.segments) segments.emplace_back(s.begin, s.end, s.lanes);
  return {tiles, segments};
}

}  // namespace

void bind_planner(py::module_& m) {
  m.def("plan", &plan, py::arg("batch_ptr"), py::arg("q_ranges"), py::arg("key_ptr"), py::arg("key_ranges"),
        py::arg("q_len"), py::arg("k_len"), py::arg("tile"), py::arg("by_key") = false,
        "Tile work list of a RangeMask: per sample (begin, end, first, last), and segments (begin, end, lanes).");
}
