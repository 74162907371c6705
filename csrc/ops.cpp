// The schema of every operator, in one place. Kernels are registered per device in binding/.
#include <torch/csrc/stable/library.h>

#include <string>

#include "cpu/isa.h"

STABLE_TORCH_LIBRARY(videoar_kernels, m) {
  // The CPU instruction set in use; a name other than "" chooses it first. Returns "" where it cannot run.
  m.def("cpu_isa(str name) -> str");

  // norm
  m.def("swiglu(Tensor gate, Tensor up) -> Tensor");
  m.def("swiglu_backward(Tensor grad_out, Tensor gate, Tensor up) -> (Tensor, Tensor)");
}

namespace {

std::string cpu_isa(std::string name) {
  using namespace videoar;
  if (!name.empty()) {
    const int wanted = isa_from_name(name.c_str());
    if (wanted < 0 || !set_isa(Isa(wanted))) return "";
  }
  return kIsaNames[int(active_isa())];
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(videoar_kernels, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&cpu_isa));
}
