// videoar_kernels._C: build information and the host-side planner. Tensor operators are in the operator library.
#include <pybind11/pybind11.h>

#include <string>

namespace py = pybind11;

#ifdef VIDEOAR_WITH_PLANNER
void bind_planner(py::module_& m);
void bind_block_planner(py::module_& m);
#endif

PYBIND11_MODULE(_C, m) {
  m.def("build_info", [] {
    py::dict info;
    info["version"] = VIDEOAR_VERSION;
    info["compiler"] = VIDEOAR_COMPILER;
    info["build_type"] = VIDEOAR_BUILD_TYPE;
    info["torch"] = VIDEOAR_TORCH_VERSION;
    info["torch_abi_target"] = "2.11";
    info["cpu_isas"] = VIDEOAR_CPU_ISAS;
    info["cuda"] = VIDEOAR_CUDA_VERSION;
    info["cuda_architectures"] = VIDEOAR_CUDA_ARCHS;
    return info;
  });
#ifdef VIDEOAR_WITH_PLANNER
  bind_planner(m);
  bind_block_planner(m);
#endif
}
