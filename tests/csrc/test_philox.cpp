// Known answers for the generator that host and device share, its threshold, and its indexing.
#include <cstdio>

#include "../../csrc/philox.h"

using namespace videoar;

static int failures = 0;

static void expect(bool ok, const char* what) {
  if (ok) return;
  std::printf("failed: %s\n", what);
  ++failures;
}

static bool equal(const PhiloxBlock& b, uint32_t w0, uint32_t w1, uint32_t w2, uint32_t w3) {
  return b.word[0] == w0 && b.word[1] == w1 && b.word[2] == w2 && b.word[3] == w3;
}

int main() {
  const uint32_t ones = 0xffffffffu;
  expect(equal(philox({{0, 0, 0, 0}}, 0, 0), 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8), "zeros");
  expect(equal(philox({{ones, ones, ones, ones}}, ones, ones), 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd), "ones");
  expect(equal(philox({{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}}, 0xa4093822, 0x299f31d0), 0xd16cfe09,
               0x94fdcceb, 0x5001e420, 0x24126ea1),
         "digits of pi");
  expect(equal(philox_block(0x85a308d3243f6a88u, 0x0370734413198a2eu, 0x299f31d0a4093822u), 0xd16cfe09, 0x94fdcceb,
               0x5001e420, 0x24126ea1),
         "64-bit pairs, low word first");
  for (uint64_t i = 0; i < 64; ++i) {
    expect(philox_word(i, 9, 8) == philox_block(i / 4, 9, 8).word[i % 4],
           "element i takes word i mod 4 of block i div 4");
  }
  const double probabilities[] = {0, 1e-9, 0x1p-24, 0.1, 0.25, 0.5, 0.999999999, 1, 2, -1, 0.1 + 0x1p-26};
  for (double p : probabilities) {
    for (uint32_t word = 0; word < 0xffff0000u; word += 65521) {
      expect(philox_event(word, philox_threshold(p)) == (double(philox_uniform(word)) < p), "event is uniform < p");
    }
    const uint32_t edge = philox_threshold(p) << 8;
    expect(philox_event(edge, philox_threshold(p)) == (double(philox_uniform(edge)) < p) || p >= 1,
           "event at the edge");
  }
  expect(philox_threshold(__builtin_nan("")) == 0, "NaN never happens");
  return failures != 0;
}
