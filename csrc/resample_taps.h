// Which pixels area down-sampling and bilinear up-sampling read, and, for their transposes, which pixels read them.
// Shared by CPU and GPU kernels; everything is static, see philox.h. I: a signed integer that holds 2 * (side + 1)^2.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace videoar {

// [begin, end)
template <class I>
struct Bin {
  I begin, end;
};

// Adaptive average pooling: output i of n averages these inputs of m.
template <class I>
VIDEOAR_HOST_DEVICE static inline Bin<I> area_bin(I i, I n, I m) {
  return {i * m / n, ((i + 1) * m + n - 1) / n};
}

// The outputs of n whose area_bin holds input j of m.
template <class I>
VIDEOAR_HOST_DEVICE static inline Bin<I> area_bins_of(I j, I n, I m) {
  return {j * n / m, ((j + 1) * n - 1) / m + 1};
}

// Bilinear with align_corners=False: output i of m is x[first] + weight * (x[second] - x[first]).
template <class A, class I>
struct Tap {
  I first, second;
  A weight;
};

template <class A, class I>
VIDEOAR_HOST_DEVICE static inline Tap<A, I> bilinear_tap(I i, I n, I m) {
  A source = A(n) / A(m) * (A(i) + A(0.5)) - A(0.5);
  if (source < 0) source = 0;
  I first = I(source);
  if (first > n - 1) first = n - 1;
  return {first, first < n - 1 ? first + 1 : first, source - A(first)};
}

// What input j weighs in an output with this tap.
template <class A, class I>
VIDEOAR_HOST_DEVICE static inline A tap_share(const Tap<A, I>& tap, I j) {
  return (tap.first == j ? 1 - tap.weight : A(0)) + (tap.second == j ? tap.weight : A(0));
}

// Holds every output of m whose tap reads input j of n, and a few more.
template <class I>
VIDEOAR_HOST_DEVICE static inline Bin<I> bilinear_reach(I j, I n, I m) {
  const I begin = (2 * j - 1) * m / (2 * n) - 2, end = (2 * j + 3) * m / (2 * n) + 2;
  return {begin < 0 ? 0 : begin, end > m ? m : end};
}

}  // namespace videoar
