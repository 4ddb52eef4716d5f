// SPDX-License-Identifier: Apache-2.0
// The sample that brackets a survey's threshold: the places of its elements, and the bracket that they give.
#ifndef FUSEO1_CPU_SURVEY_SAMPLING_H_
#define FUSEO1_CPU_SURVEY_SAMPLING_H_

#include <math.h>
#include <stdint.h>

#include <algorithm>
#include <array>

#include "kernels/table.h"
#include "pages.h"

namespace fuseo1 {

constexpr int64_t kRun = 32;                // sampled elements per run: a cache line of bf16
constexpr int64_t kLongRun = 256;           // of large tensors: from files, each run is a system call
constexpr int64_t kMostSampled = 1 << 16;   // of tensors up to 32 Mi elements; of larger ones one in 512
constexpr int64_t kBytesPerSampled = 64;    // of max_bytes, beyond kMostSampled: the sample takes a sixteenth of it
constexpr int64_t kLeastSampled = 1 << 9;   // fewer would tell nothing
constexpr int64_t kElementsPerSample = 32;  // at least
constexpr double kBracketDeviations = 4.0;  // standard deviations to each side

inline int64_t run_length(int64_t numel) { return numel >= (kMostSampled << 4) ? kLongRun : kRun; }

inline int64_t sample_runs(int64_t numel, int64_t max_bytes) {
  const int64_t most = std::max(kMostSampled, std::min(numel >> 9, max_bytes / kBytesPerSampled));
  const int64_t wanted = std::min(numel / kElementsPerSample, most);
  return wanted < kLeastSampled ? 0 : wanted / run_length(numel);
}

// Runs are spread evenly, each moved by a hash within its stretch so that they do not resonate with any row length, and
// start on cache lines.
inline int64_t sample_start(int64_t numel, int64_t runs, int64_t run) {
  const int64_t stretch = numel / std::max<int64_t>(runs, 1), length = run_length(numel);
  const uint64_t hash = static_cast<uint64_t>(run + 1) * 0x9e3779b97f4a7c15u >> 33;
  return (run * stretch + static_cast<int64_t>(hash % static_cast<uint64_t>(stretch - length + 1))) / length * length;
}

// A sample's scores by rank.
class Ranks {
 public:
  explicit Ranks(const Pages<uint32_t>& sample) : sample_(sample), by_top_(count(kTop, kDigit, 0)) {}

  // The nth highest score, from 0; there are more than nth.
  uint32_t nth_highest(int64_t nth) const {
    uint32_t found = reach(by_top_, &nth);  // its bits from `low` up
    for (int low = kTop - kDigit; low > 0;) {
      const int bits = std::min(low, kDigit);
      found = found << bits | reach(count(low, bits, found), &nth);
      low -= bits;
    }
    return found;
  }

 private:
  static constexpr int kDigit = 12, kTop = 31;
  using Bins = std::array<uint32_t, 1 << kDigit>;

  // Counts the scores whose bits from bit `high` up are `prefix`, by the `bits` bits below.
  Bins count(int high, int bits, uint32_t prefix) const {
    Bins bins{};
    const uint32_t mask = (1u << bits) - 1;
    for (const uint32_t v : sample_) {
      if (v >> high == prefix) ++bins[v >> (high - bits) & mask];
    }
    return bins;
  }
  static uint32_t reach(const Bins& bins, int64_t* nth) {
    uint32_t bin = (1 << kDigit) - 1;
    for (; bins[bin] <= *nth; --bin) *nth -= bins[bin];
    return bin;
  }

  const Pages<uint32_t>& sample_;
  const Bins by_top_;
};

// The selected are a share of the scores that are not 0, or of all scores.
enum ShareOf { kOfNonzero, kOfAll };

// The standard deviation, over samples, of how many of the sampled scores are above `level`. A run's elements are
// neighbours, often of one row and so of one scale. So the random draw is of runs, and the variance is that of each
// run's count above `level`, beyond its expected share.
inline double deviation_above(const Pages<uint32_t>& sample, size_t length, uint32_t level, ShareOf of) {
  double aa = 0, ap = 0, pp = 0, all_above = 0, all_present = 0;
  for (size_t run = 0; run < sample.size(); run += length) {
    const size_t end = std::min(run + length, sample.size());
    int above = 0, present = 0;
    for (size_t j = run; j < end; ++j) {
      above += sample[j] > level;
      present += of == kOfAll || sample[j] != 0;
    }
    const double a = above, p = present;
    aa += a * a, ap += a * p, pp += p * p, all_above += a, all_present += p;
  }
  const double share = all_above / all_present;
  return sqrt(std::max(aa - 2 * share * ap + share * share * pp, 0.0));
}

// The bracket that almost certainly holds the threshold, from the scores of a sample, in runs of `length`; *likeliest
// is the best single guess.
inline Bracket bracket_of(const Pages<uint32_t>& sample, size_t length, double share, ShareOf of,
                          uint32_t* likeliest = nullptr) {
  Bracket bracket = {1, kInfBits};
  const auto nonzero = static_cast<int64_t>(sample.size()) - std::count(sample.begin(), sample.end(), 0u);
  if (nonzero == 0) return bracket;
  const double m = static_cast<double>(nonzero), rank = share * (of == kOfAll ? static_cast<double>(sample.size()) : m);
  const Ranks ranks(sample);
  const uint32_t middle = ranks.nth_highest(std::min(static_cast<int64_t>(rank), nonzero - 1));
  if (likeliest) *likeliest = middle;
  // Above the middle, or at it: among many equal scores these differ. And at least that of elements drawn one by one,
  // because a few runs can show less, a single one none.
  const double deviation = std::max({sqrt(rank * (1 - share)), deviation_above(sample, length, middle, of),
                                     deviation_above(sample, length, middle - 1, of)});
  const double margin = 16 + kBracketDeviations * deviation;
  if (rank - margin >= 0) bracket.high = ranks.nth_highest(static_cast<int64_t>(rank - margin));
  if (rank + margin < m) bracket.low = ranks.nth_highest(static_cast<int64_t>(rank + margin));
  return bracket;
}

}  // namespace fuseo1
#endif  // FUSEO1_CPU_SURVEY_SAMPLING_H_
