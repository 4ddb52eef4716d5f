// SPDX-License-Identifier: Apache-2.0
// The numbers of fuse's filter (docs/arithmetic.md), on the CPU and on GPUs: parameters in fp32, and bounds on what
// that changes.
#ifndef FUSEO1_COMMON_FILTER_H_
#define FUSEO1_COMMON_FILTER_H_

#include <math.h>

#include "arithmetic.h"

namespace fuseo1 {

// The most targets whose sets of survivors have a factor each.
constexpr int kMostInTable = 4;

// The filter's input: fuse's parameters. `divisor` 0 stands for the sum of the survivors' shares.
struct FilterTerms {
  const double *weights, *shares, *alone;  // alone: may be nullptr
  int32_t targets, elect;
  double divisor, floor_divisor, scale, base_scale;
  bool masked;
  bool table;  // scale / divisor is looked up by the set of survivors

  // scale / divisor for the survivors of one set (a bit each, not 0); times `alone` for a set of one.
  FUSEO1_HOST_DEVICE double factor(int set) const {
    if (divisor != 0.0) return scale / divisor;
    double den = 0.0, times = scale;
    for (int i = 0; i < targets; ++i) {
      den += set >> i & 1 ? shares[i] : 0.0;
      if (alone && set == 1 << i) times *= alone[i];
    }
    if (floor_divisor != 0.0) return times / (den > floor_divisor ? den : floor_divisor);
    return fabs(den) < least_divisor(elect) ? times : times / den;
  }
  FUSEO1_HOST_DEVICE int factors() const { return divisor != 0.0 ? 1 : table ? 1 << targets : 0; }
};

template <int kMost>
struct FilterNumbers {
  float weights[kMost], shares[kMost];
  float scale, base_scale, floor;
  alignas(64) float factors[1 << kMostInTable];  // by the set of survivors; [0] if the divisor is fixed
  // |result - E| < by_delta * |delta| + by_result * |result| + least; if |s| >= by_votes * (sum of |t|), the sign of s
  // is certain.
  float by_delta, by_result, least, by_votes;

  // Sets the factors `from`, `from + step`, ...: threads share the work. Call it before set().
  FUSEO1_HOST_DEVICE void set_factors(const FilterTerms& by, int from = 0, int step = 1) {
    const int count = by.factors();
    for (int i = from; i < (count ? count : 1); i += step) {
      factors[i] = i || count == 1 ? static_cast<float>(by.factor(i)) : 1.0f;  // 1 if none survives
    }
  }

  // Sets everything but `factors`, which are set before. False if the bounds do not hold for these terms.
  FUSEO1_HOST_DEVICE bool set(const FilterTerms& by) {
    const int n = by.targets;
    bool usable = n > 0 && by.floor_divisor >= 0.0 && (by.base_scale == 0.0 || in_range(fabs(by.base_scale)));
    // With a mask by score only SCE's votes cover every z: others would miss one that is not finite.
    usable &= !by.masked || by.elect == FUSEO1_ELECT_SUM;
    // E divides before it scales: with this and the factors in range, no step of it leaves fp64's.
    usable &= in_range(fabs(by.scale));
    // Without a table nothing tells how many survive.
    usable &= !by.alone || by.factors() > 1;
    for (int i = 0; i < n; ++i) {
      usable &= !by.alone || in_range(fabs(by.alone[i]));
      const double w = by.weights[i];
      // After an election all t have one sign only if no weight is negative.
      usable &= in_range(by.elect == FUSEO1_ELECT_NONE ? fabs(w) : w) || (w == 0.0 && by.elect == FUSEO1_ELECT_SUM);
      weights[i] = static_cast<float>(w);
      shares[i] = static_cast<float>(by.shares[i]);
    }
    scale = static_cast<float>(by.scale), base_scale = static_cast<float>(by.base_scale);
    floor = static_cast<float>(by.floor_divisor);
    double largest = 1.0;
    const int count = by.factors();
    for (int i = count > 1; i < count; ++i) {
      usable &= in_range(factors[i]);
      largest = fmax(largest, static_cast<double>(factors[i]));
    }
    if (count == 0) {
      usable &= by.scale > 0.0;
      // A sum of these counts as 0 only if it is.
      const double smallest = by.elect == FUSEO1_ELECT_SUM ? 0x1p-60 : 0x1p-20;
      for (int i = 0; i < n; ++i) {
        if (by.shares[i] == 0.0) continue;
        usable &= by.shares[i] >= smallest && in_range(by.shares[i]);
        largest = fmax(largest, by.scale / by.shares[i]);
      }
      if (by.floor_divisor != 0.0) usable &= in_range(by.floor_divisor);
      // The factor of survivors that have no share.
      largest = fmax(largest, by.floor_divisor != 0.0 ? by.scale / by.floor_divisor : by.scale);
      usable &= largest <= 0x1p60;
    }
    // A test widens all of these, and narrows each, to prove that they hold and that they are needed.
    constexpr double u = 0x1p-24, slack = 1.0 + 0x1p-6;
    const bool scaled = by.base_scale != 1.0;
    by_delta = static_cast<float>(((count ? n + 6 : 2 * n + 9) + (scaled ? 2 : 0)) * u * slack);
    by_result = static_cast<float>((scaled ? 4 : 2) * u * slack);
    least = static_cast<float>(0x1p-100 * largest);
    // Sums of one or two products by a power of two have the sign of the exact sum.
    const bool exact = n == 1 || (n == 2 && by.weights[0] == by.weights[1] && is_power_of_two(by.weights[0]));
    by_votes = exact ? 0.0f : static_cast<float>((n + 2) * u * slack);
    return usable;
  }

 private:
  // Weights, shares and factors in this range, whose products lose nothing to denormals that `least` does not cover.
  static FUSEO1_HOST_DEVICE bool in_range(double x) { return x >= 0x1p-60 && x <= 0x1p60; }

  static FUSEO1_HOST_DEVICE bool is_power_of_two(double x) {
    int exponent;
    return frexp(x, &exponent) == 0.5;
  }
};

}  // namespace fuseo1
#endif  // FUSEO1_COMMON_FILTER_H_
