// pybind11 face of the planner: for tests, and for looking at a mask's work list.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <tuple>

#include "../plan_cache.h"

namespace py = pybind11;

namespace {

using Ints = py::array_t<int32_t, py::array::c_style>;
using TileTuple = std::tuple<int32_t, int32_t, int32_t, int32_t>;
using SegmentTuple = std::tuple<int32_t, int32_t, uint64_t>;

using Tuples = std::tuple<std::vector<std::vector<TileTuple>>, std::vector<SegmentTuple>>;

videoar::PlanRequest request(const Ints& batch_ptr, const Ints& q_ranges, const Ints& key_ptr, const Ints& key_ranges,
                             int64_t q_len, int64_t k_len, int tile, bool by_key) {
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
  return {mask, tile, by_key};
}

std::shared_ptr<const videoar::TilePlan> make(const videoar::PlanRequest& request, bool cached) {
  const char* reason = nullptr;
  std::shared_ptr<const videoar::TilePlan> made;
  if (cached) {
    made = videoar::cached_plan(request, reason);
  } else if (!(reason = videoar::invalid(request.mask))) {
    made = std::make_shared<videoar::TilePlan>(request.by_key ? videoar::plan_keys(request.mask, request.tile)
                                                              : videoar::plan_queries(request.mask, request.tile));
  }
  if (!made) throw py::value_error(std::string("plan: ") + reason);
  return made;
}

Tuples plan(const Ints& batch_ptr, const Ints& q_ranges, const Ints& key_ptr, const Ints& key_ranges, int64_t q_len,
            int64_t k_len, int tile, bool by_key, bool cached) {
  const videoar::PlanRequest wanted = request(batch_ptr, q_ranges, key_ptr, key_ranges, q_len, k_len, tile, by_key);
  std::shared_ptr<const videoar::TilePlan> made;
  {
    const py::gil_scoped_release others_run;
    made = make(wanted, cached);
  }
  const videoar::TilePlan& result = *made;
  const int64_t samples = wanted.mask.samples;
  std::vector<std::vector<TileTuple>> tiles(samples);
  for (int64_t b = 0; b < samples; ++b)
    for (int32_t i = result.tile_ptr[b]; i < result.tile_ptr[b + 1]; ++i) {
      const videoar::Tile& t = result.tiles[i];
      tiles[b].emplace_back(t.begin, t.end, t.first, t.last);
    }
  std::vector<SegmentTuple> segments;
  for (const videoar::TileSegment& s : result.segments) segments.emplace_back(s.begin, s.end, s.lanes);
  return {tiles, segments};
}

int64_t plan_segments(const Ints& batch_ptr, const Ints& q_ranges, const Ints& key_ptr, const Ints& key_ranges,
                      int64_t q_len, int64_t k_len, int tile, bool by_key, bool cached) {
  const videoar::PlanRequest wanted = request(batch_ptr, q_ranges, key_ptr, key_ranges, q_len, k_len, tile, by_key);
  return int64_t(make(wanted, cached)->segments.size());
}

py::dict plan_cache() {
  const videoar::PlanCacheState state = videoar::plan_cache_state();
  py::dict result;
  result["hits"] = state.hits;
  result["misses"] = state.misses;
  result["plans"] = state.plans;
  result["bytes"] = state.bytes;
  return result;
}

}  // namespace

void bind_planner(py::module_& m) {
  m.def("plan", &plan, py::arg("batch_ptr"), py::arg("q_ranges"), py::arg("key_ptr"), py::arg("key_ranges"),
        py::arg("q_len"), py::arg("k_len"), py::arg("tile"), py::arg("by_key") = false, py::arg("cached") = false,
        "Tile work list of a RangeMask: per sample (begin, end, first, last), and segments (begin, end, lanes).");
  m.def("plan_segments", &plan_segments, py::arg("batch_ptr"), py::arg("q_ranges"), py::arg("key_ptr"),
        py::arg("key_ranges"), py::arg("q_len"), py::arg("k_len"), py::arg("tile"), py::arg("by_key") = false,
        py::arg("cached") = false, "How many segments plan() gives; to time planning without turning it into Python.");
  m.def("plan_cache", &plan_cache, "What this module's plan cache did and holds; the operators have one of their own.");
  m.def("clear_plan_cache", &videoar::clear_plan_cache, "Forgets all plans.");
}
