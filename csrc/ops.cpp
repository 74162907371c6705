// The schema of every operator, in one place. Kernels are registered per device in binding/.
#include <torch/csrc/stable/library.h>

#include <string>

#include "cpu/isa.h"

STABLE_TORCH_LIBRARY(videoar_kernels, m) {
  // The CPU instruction set in use; a name other than "" chooses it first. Returns "" where it cannot run.
  m.def("cpu_isa(str name) -> str");

  // norm
  m.def("adaln_norm(Tensor x, Tensor? scale, Tensor? shift, Tensor? weight, float eps, bool layer) -> Tensor");
  m.def(
      "adaln_norm_backward(Tensor grad_out, Tensor x, Tensor? scale, Tensor? shift, Tensor? weight, float eps, "
      "bool layer) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "adaln_norm_out(Tensor x, Tensor? scale, Tensor? shift, Tensor? weight, float eps, bool layer, "
      "Tensor(a!) out) -> ()");
  m.def("gated_residual_out(Tensor x, Tensor y, Tensor gate, Tensor(a!) out) -> ()");
  m.def("swiglu_out(Tensor gate, Tensor up, Tensor(a!) out) -> ()");
  m.def("gated_residual(Tensor x, Tensor y, Tensor gate) -> Tensor");
  m.def("gated_residual_backward(Tensor grad_out, Tensor y, Tensor gate) -> (Tensor, Tensor)");
  m.def("swiglu(Tensor gate, Tensor up) -> Tensor");
  m.def("swiglu_backward(Tensor grad_out, Tensor gate, Tensor up) -> (Tensor, Tensor)");

  // rope; without dims a head is split as in Wan, see binding/positions.h
  m.def("rope_3d(Tensor x, Tensor positions, int[]? dims, float theta, bool interleaved, bool inverse) -> Tensor");
  m.def(
      "rope_3d_out(Tensor x, Tensor positions, int[]? dims, float theta, bool interleaved, bool inverse, "
      "Tensor(a!) out) -> ()");
  m.def("rope_3d_(Tensor(a!) x, Tensor positions, int[]? dims, float theta, bool interleaved, bool inverse) -> ()");
  m.def(
      "qk_norm_rope(Tensor q, Tensor k, Tensor? q_weight, Tensor? k_weight, Tensor positions, float eps, int[]? dims, "
      "float theta, bool interleaved, bool full_width) -> (Tensor, Tensor)");
  m.def(
      "qk_norm_rope_out(Tensor q, Tensor k, Tensor? q_weight, Tensor? k_weight, Tensor positions, float eps, "
      "int[]? dims, float theta, bool interleaved, bool full_width, Tensor(a!) q_out, Tensor(b!) k_out) -> ()");
  m.def(
      "qk_norm_rope_backward(Tensor grad_q, Tensor grad_k, Tensor q, Tensor k, Tensor q_weight, Tensor k_weight, "
      "Tensor positions, float eps, int[]? dims, float theta, bool interleaved, bool full_width) "
      "-> (Tensor, Tensor, Tensor, Tensor)");

  // linear; packed weights: see cpu/linear.h
  m.def("pack_linear_weight(Tensor weight) -> Tensor");
  m.def("packed_linear(Tensor x, Tensor packed, Tensor? bias, SymInt out_features) -> Tensor");
  m.def("packed_linear_out(Tensor x, Tensor packed, Tensor? bias, SymInt out_features, Tensor(a!) out) -> ()");

  // kv_cache
  m.def(
      "kv_cache_append(Tensor(a!)[] k_caches, Tensor(b!)[] v_caches, Tensor[] ks, Tensor[] vs, Tensor[] k_weights, "
      "Tensor? positions, SymInt start, int sink, float eps=1e-6, int[] dims=[], float theta=1e4, "
      "bool interleaved=True) -> ()");
  m.def(
      "kv_cache_append_layer(Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor k, Tensor v, Tensor? k_weight, "
      "Tensor? positions, SymInt start, int sink, float eps=1e-6, int[] dims=[], float theta=1e4, "
      "bool interleaved=True) -> ()");
  // moves: source, target and length of stretches of slots, one after the other
  m.def("kv_cache_move(Tensor(a!)[] caches, int[] moves) -> ()");

  // attention; without the four mask arrays every query sees every key
  m.def(
      "range_attention(Tensor q, Tensor k, Tensor v, Tensor? batch_ptr, Tensor? q_ranges, Tensor? key_ptr, "
      "Tensor? key_ranges, float scale) -> (Tensor, Tensor)");
  m.def(
      "range_attention_out(Tensor q, Tensor k, Tensor v, Tensor? batch_ptr, Tensor? q_ranges, Tensor? key_ptr, "
      "Tensor? key_ranges, float scale, Tensor(a!) out) -> Tensor");
  // the same without lse and gradients, for inference; mask is RangeMask.packed
  m.def("range_attention_forward(Tensor q, Tensor k, Tensor v, Tensor? mask, float? scale) -> Tensor");
  m.def("range_attention_forward_out(Tensor q, Tensor k, Tensor v, Tensor? mask, float? scale, Tensor(a!) out) -> ()");
  m.def(
      "range_attention_backward(Tensor grad_out, Tensor? grad_lse, Tensor q, Tensor k, Tensor v, Tensor out, "
      "Tensor lse, Tensor? batch_ptr, Tensor? q_ranges, Tensor? key_ptr, Tensor? key_ranges, float scale) "
      "-> (Tensor, Tensor, Tensor)");

  // bits; floats come before packed bits in every result: torch.library.opcheck cannot sum them the other way
  m.def("bsq_quantize(Tensor x) -> (Tensor, Tensor)");
  m.def("bsq_quantize_out(Tensor x, Tensor(a!) bits, Tensor(b!) code) -> ()");
  m.def("pack_bits(Tensor ones) -> Tensor");
  m.def("pack_bits_out(Tensor ones, Tensor(a!) bits) -> ()");
  m.def("unpack_bits(Tensor bits, SymInt dim) -> Tensor");
  m.def("unpack_bits_out(Tensor bits, Tensor(a!) ones) -> ()");
  // dtype counts as in DType: the dispatcher takes a microsecond to hand over a ScalarType
  m.def("bits_to_code(Tensor bits, SymInt dim, int dtype) -> Tensor");
  m.def("bits_to_code_out(Tensor bits, Tensor(a!) code) -> ()");
  m.def("flip_bits(Tensor bits, float p, Tensor? token_p, SymInt? dim, SymInt seed, SymInt offset) -> Tensor");
  m.def(
      "flip_bits_out(Tensor bits, float p, Tensor? token_p, SymInt? dim, SymInt seed, SymInt offset, Tensor(a!) out) "
      "-> ()");
  m.def(
      "sample_bits(Tensor logits, Tensor? uncond, float guidance, Tensor? token_guidance, float temperature, "
      "SymInt seed, Tensor? seeds, SymInt offset) -> (Tensor, Tensor)");
  m.def(
      "sample_bits_out(Tensor logits, Tensor? uncond, float guidance, Tensor? token_guidance, float temperature, "
      "SymInt seed, Tensor? seeds, SymInt offset, Tensor(a!) bits, Tensor(b!) code) -> ()");
  m.def(
      "bit_cross_entropy(Tensor logits, Tensor bits, Tensor? weight, Tensor? scale_ids, SymInt num_scales) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "bit_cross_entropy_backward(Tensor grad_loss, Tensor grad_per_scale, Tensor logits, Tensor bits, "
      "Tensor? weight, Tensor? scale_ids, Tensor totals) -> Tensor");

  // pyramid; scales are h, w, h, w, ...
  m.def(
      "pyramid_encode(Tensor z, int[] scales, float flip_p=0., Tensor? flip_table=None, SymInt seed=0, "
      "SymInt offset=0, bool inherit=True) -> (Tensor, Tensor, Tensor)");
  m.def(
      "pyramid_encode_out(Tensor z, int[] scales, Tensor(a!) labels, Tensor(b!) inputs, Tensor(c!) total, "
      "float flip_p=0., Tensor? flip_table=None, SymInt seed=0, SymInt offset=0, bool inherit=True) -> ()");
  m.def("pyramid_encode_backward(Tensor grad_total, int[] scales) -> Tensor");
  m.def(
      "pyramid_decode(Tensor bits, int[] scales, SymInt dim, ScalarType? dtype=None, SymInt? keep=None, "
      "Tensor? keep_table=None) -> Tensor");
  m.def(
      "pyramid_decode_out(Tensor bits, int[] scales, Tensor(a!) total, SymInt? keep=None, Tensor? keep_table=None) "
      "-> ()");
  m.def("pyramid_resample(Tensor x, int[] scales) -> Tensor");
  m.def("pyramid_resample_out(Tensor x, int[] scales, Tensor(a!) out) -> ()");
  m.def("pyramid_resample_backward(Tensor grad, int[] scales, SymInt height, SymInt width) -> Tensor");
  m.def("pyramid_step(Tensor total, Tensor bits, int[] scales) -> (Tensor, Tensor)");
  m.def(
      "pyramid_step_out(Tensor total, Tensor bits, int[] scales, Tensor(a!) total_out, Tensor(b!)? input=None) -> ()");
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

STABLE_TORCH_LIBRARY_IMPL(videoar_kernels, CompositeExplicitAutograd, m) { m.impl("cpu_isa", TORCH_BOX(&cpu_isa)); }
