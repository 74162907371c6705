#include "isa.h"

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace videoar {
namespace {

#if defined(__x86_64__)
uint64_t xcr0() {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (uint64_t(high) << 32) | low;
}

Isa detect() {
  uint32_t a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return Isa::portable;
  const bool osxsave = c & (1u << 27), avx = c & (1u << 28), fma = c & (1u << 12), f16c = c & (1u << 29);
  // The operating system must save the wide registers too, or they are corrupted at a context switch.
  if (!osxsave || !avx || !fma || !f16c || (xcr0() & 0x6) != 0x6) return Isa::portable;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return Isa::portable;
  if (!(b & (1u << 5))) return Isa::portable;
  const bool f = b & (1u << 16), dq = b & (1u << 17), bw = b & (1u << 30), vl = b & (1u << 31);
  if (!(f && dq && bw && vl) || (xcr0() & 0xe6) != 0xe6) return Isa::avx2;
  if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a & (1u << 5))) return Isa::avx512;
  return Isa::avx512_bf16;
}
#else
Isa detect() { return Isa::portable; }
#endif

// What kernels may run here, built or not.
Isa supported_isa() {
  const Isa detected = detect();
#ifdef VIDEOAR_EMULATE_AVX512
  // Such a build's AVX-512 kernels are made of AVX2 instructions.
  if (detected >= Isa::avx2) return Isa::avx512_bf16;
#endif
  return detected;
}

Isa initial_isa() {
  const char* name = std::getenv("VIDEOAR_ISA");
  if (name == nullptr || *name == '\0') return best_isa();
  const int wanted = isa_from_name(name);
  // A wrong value is reported by Python (videoar_kernels/library.py), which can raise.
  if (wanted < 0 || wanted > int(best_isa()) || !is_built(Isa(wanted))) return best_isa();
  return Isa(wanted);
}

std::atomic<int>& current() {
  static std::atomic<int> value{int(initial_isa())};
  return value;
}

}  // namespace

bool is_built(Isa isa) {
  switch (isa) {
    case Isa::portable:
      return true;
      VIDEOAR_IF_AVX2(case Isa::avx2 : return true;)
      VIDEOAR_IF_AVX512(case Isa::avx512 : return true;)
      VIDEOAR_IF_AVX512_BF16(case Isa::avx512_bf16 : return true;)
    default: return false;
  }
}

Isa best_isa() {
  static const Isa best = [] {
    int isa = int(supported_isa());
    while (!is_built(Isa(isa))) --isa;
    return Isa(isa);
  }();
  return best;
}

Isa active_isa() { return Isa(current().load(std::memory_order_relaxed)); }

bool set_isa(Isa isa) {
  if (int(isa) < 0 || int(isa) > int(best_isa()) || !is_built(isa)) return false;
  current().store(int(isa), std::memory_order_relaxed);
  return true;
}

int isa_from_name(const char* name) {
  for (int i = 0; i < kIsaCount; ++i) {
    if (std::strcmp(name, kIsaNames[i]) == 0) return i;
  }
  return -1;
}

}  // namespace videoar
