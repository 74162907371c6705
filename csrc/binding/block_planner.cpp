// pybind11 face of the planner for GPU kernels: work lists as arrays, to be copied to the device.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>

#include "../block_plan.h"

namespace py = pybind11;

namespace {

using Ints = py::array_t<int32_t, py::array::c_style>;

template <class T, class Element>
py::array_t<T> array_of(const std::vector<Element>& elements, std::vector<py::ssize_t> shape) {
  return py::array_t<T>(std::move(shape), reinterpret_cast<const T*>(elements.data()));
}

py::tuple plan_blocks(const std::optional<Ints>& batch_ptr, const std::optional<Ints>& q_ranges,
                      const std::optional<Ints>& key_ptr, const std::optional<Ints>& key_ranges, int64_t q_len,
                      int64_t k_len, int tile, int block, bool by_key) {
  if (tile < 1 || tile > videoar::kMaxBlockTile || block < 1 || block > 128)
    throw py::value_error("plan_blocks: expected tile and block between 1 and 128");
  videoar::RangeMaskView mask{};
  mask.q_len = q_len;
  mask.k_len = k_len;
  if (batch_ptr) {
    if (!q_ranges || !key_ptr || !key_ranges)
      throw py::value_error("plan_blocks: expected all four mask arrays or none");
    mask = {batch_ptr->data(),
            q_ranges->data(),
            key_ptr->data(),
            key_ranges->data(),
            batch_ptr->size() - 1,
            q_ranges->size() / 2,
            key_ranges->size() / 2,
            q_len,
            k_len};
    if (batch_ptr->size() < 2 || key_ptr->size() != mask.rows + 1)
      throw py::value_error("plan_blocks: expected batch_ptr of samples + 1 and key_ptr of rows + 1 numbers");
    if (const char* reason = videoar::invalid(mask)) throw py::value_error(std::string("plan_blocks: ") + reason);
  }
  videoar::BlockPlan p;
  {
    const py::gil_scoped_release others_run;
    p = videoar::plan_blocks(mask, tile, block, by_key);
  }
  const py::ssize_t words = (block + 63) / 64, patterns = p.patterns.size() / (words * tile);
  return py::make_tuple(array_of<int32_t>(p.tiles, {py::ssize_t(p.tiles.size()), videoar::kBlockTileInts}),
                        array_of<int32_t>(p.tile_ptr, {py::ssize_t(p.tile_ptr.size())}),
                        array_of<int32_t>(p.full, {py::ssize_t(p.full.size())}),
                        array_of<int32_t>(p.partial, {py::ssize_t(p.partial.size()), videoar::kPartialBlockInts}),
                        array_of<int64_t>(p.patterns, {patterns, words, tile}));
}

}  // namespace

void bind_block_planner(py::module_& m) {
  m.def("plan_blocks", &plan_blocks, py::arg("batch_ptr"), py::arg("q_ranges"), py::arg("key_ptr"),
        py::arg("key_ranges"), py::arg("q_len"), py::arg("k_len"), py::arg("tile"), py::arg("block"),
        py::arg("by_key") = false,
        "Work list for GPU kernels: tiles (n, 6) int32: begin, end, full first and last, partial first and last; "
        "tile_ptr; full: first columns; partial (m, 3): begin, end, pattern; patterns (p, words, tile) int64.");
}
