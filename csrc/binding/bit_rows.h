// Rows of packed bits, and numbers for each of them, as bindings get them.
#pragma once

#include "gpu.h"

namespace videoar {

inline const uint8_t* bytes_of(const Rows& rows) { return static_cast<const uint8_t*>(rows.tensor.const_data_ptr()); }
inline uint8_t* mutable_bytes(const Tensor& t) { return static_cast<uint8_t*>(t.mutable_data_ptr()); }

// One float64 per row, dense, or null.
inline const double* row_values(std::optional<Tensor>& t, const Rows& like, const char* message) {
  if (!t.has_value()) return nullptr;
  STD_TORCH_CHECK(t->numel() == like.rows && t->scalar_type() == ScalarType::Double && same_device(*t, like.tensor),
                  message);
  t = torch::stable::contiguous(*t);
  return static_cast<const double*>(t->const_data_ptr());
}

inline void check_packed(const Rows& rows, int64_t dim, const char* message) {
  STD_TORCH_CHECK(has_kernels(rows.tensor) && rows.tensor.scalar_type() == ScalarType::Byte && dim >= 0 &&
                      rows.width == dim / 8 + (dim % 8 != 0),
                  message);
}

}  // namespace videoar
