// SPDX-License-Identifier: Apache-2.0
#include "dispatch.h"

#include <atomic>

namespace fuseo1 {
namespace {

#define FUSEO1_TABLE(isa)                                                                    \
  {#isa,          sce_##isa.energy, sce_##isa.scan, sce_##isa.score, sce_##isa.add_selected, \
   fuse_##isa,    magnitudes_##isa, sums_##isa,     ranked_##isa,    divergences_##isa,      \
   average_##isa, decode_##isa,     fold_##isa}

const std::vector<Kernels>& tables() {
  static const std::vector<Kernels> available = [] {
    std::vector<Kernels> t = {FUSEO1_TABLE(baseline)};
#if defined(FUSEO1_X86_64)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (avx2) t.push_back(FUSEO1_TABLE(avx2));
    if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      t.push_back(FUSEO1_TABLE(avx512));
    }
#endif
    return t;
  }();
  return available;
}

std::atomic<const Kernels*> in_use{nullptr};

}  // namespace

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const Kernels& k : tables()) names.emplace_back(k.name);
  return names;
}

const Kernels* find_kernels(const std::string& name) {
  if (name.empty()) return &tables().back();
  for (const Kernels& k : tables()) {
    if (name == k.name) return &k;
  }
  return nullptr;
}

const Kernels& kernels() {
  const Kernels* k = in_use.load(std::memory_order_acquire);
  return k ? *k : tables().back();
}

void use_kernels(const Kernels* chosen) { in_use.store(chosen, std::memory_order_release); }

bool valid(const fuseo1_operand* operands, int64_t targets, int64_t offset, int64_t count, int32_t threads) {
  if (!operands || targets < 0 || targets > FUSEO1_MAX_TARGETS || threads < 1) return false;
  if (offset < 0 || offset % FUSEO1_BLOCK || count < 0) return false;
  for (int64_t i = 0; i <= targets; ++i) {
    if (operands[i].dtype < FUSEO1_BF16 || operands[i].dtype > FUSEO1_FP32) return false;
    if (!operands[i].data && count) return false;
  }
  return true;
}

}  // namespace fuseo1
