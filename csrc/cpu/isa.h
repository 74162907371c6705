// The instruction sets a CPU kernel is compiled for, and the one in use.
#pragma once

namespace videoar {

enum class Isa { portable = 0, avx2 = 1, avx512 = 2, avx512_bf16 = 3 };

constexpr int kIsaCount = 4;
constexpr const char* kIsaNames[kIsaCount] = {"portable", "avx2", "avx512", "avx512_bf16"};

// The best instruction set that was compiled in and that CPU and operating system support.
Isa best_isa();

// Whether kernels for it were compiled in.
bool is_built(Isa isa);

// best_isa(), unless VIDEOAR_ISA or set_isa() chose a lower one.
Isa active_isa();

// False where this CPU or this build lacks the instruction set; nothing changes then.
bool set_isa(Isa isa);

// -1 for an unknown name.
int isa_from_name(const char* name);

}  // namespace videoar

// What a build without an instruction set leaves out.
#ifdef VIDEOAR_HAS_AVX2
#define VIDEOAR_IF_AVX2(...) __VA_ARGS__
#else
#define VIDEOAR_IF_AVX2(...)
#endif
#ifdef VIDEOAR_HAS_AVX512
#define VIDEOAR_IF_AVX512(...) __VA_ARGS__
#else
#define VIDEOAR_IF_AVX512(...)
#endif
#ifdef VIDEOAR_HAS_AVX512_BF16
#define VIDEOAR_IF_AVX512_BF16(...) __VA_ARGS__
#else
#define VIDEOAR_IF_AVX512_BF16(...)
#endif

// Each kernel family declares a table `Table` of function pointers. Every instruction set defines one in its
// own namespace, and `name()` returns the table of the active one.
#define VIDEOAR_DECLARE_KERNELS(Table, name)                                    \
  namespace portable {                                                          \
  extern const Table name;                                                      \
  }                                                                             \
  VIDEOAR_IF_AVX2(namespace avx2 { extern const Table name; })                  \
  VIDEOAR_IF_AVX512(namespace avx512 { extern const Table name; })              \
  VIDEOAR_IF_AVX512_BF16(namespace avx512_bf16 { extern const Table name; })    \
  inline const Table& name() {                                                  \
    switch (active_isa()) {                                                     \
      VIDEOAR_IF_AVX512_BF16(case Isa::avx512_bf16 : return avx512_bf16::name;) \
      VIDEOAR_IF_AVX512(case Isa::avx512 : return avx512::name;)                \
      VIDEOAR_IF_AVX2(case Isa::avx2 : return avx2::name;)                      \
      default: return portable::name;                                           \
    }                                                                           \
  }
