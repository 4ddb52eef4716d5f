// SPDX-License-Identifier: Apache-2.0
// RANKED selections (include/fuseo1/select.h) without sorting rows. Compiled once per instruction set with FUSEO1_ISA
// naming it.
//
// Most random words decide alone: below the lowest limit of all ranks, or not below the highest. For the others a
// histogram of the row's magnitudes bounds the rank; elements that this leaves open need their place within their bin.
// In a bin of equals (bf16 differences have many) that is their place in the row's order. Otherwise the row's larger
// elements are counted or, for many open elements, the bins are sorted.
#include "block.h"
#include "select.h"

namespace fuseo1 {
namespace {

// At most so many open elements have their larger ones counted, one by one.
constexpr int64_t kCounted = 6;

// Writes the bits of |d| of elements at .. at + count - 1, at most those of infinity, to `to`; then at least a block of
// zeros.
void load_magnitudes(const Chunk& pair, int64_t at, int64_t count, uint32_t* to) {
  Block block;
  for (int64_t done = 0; done < count; done += kBlock, to += kBlock) {
    load_block<false>(pair, at + done, count - done < kBlock ? count - done : kBlock, &block, nullptr);
    for (int j = 0; j < kBlock; j += kWidth) {
      const Vu m = magnitude(load<Vf>(block.d[0] + j)), infinity = splat(kInfBits);
      store(to + j, m < infinity ? m : infinity);
    }
  }
  memset(to, 0, kBlock * sizeof *to);
}

// The indices of a vector's elements, from `first` on.
FUSEO1_INLINE Vu indices(int64_t first) { return splat(static_cast<uint32_t>(first)) + (Vu)load<Vi>(kLanes); }

// In whole blocks, sets the bits of elements that are selected whatever their rank, and gathers those that need their
// rank; returns how many these are. `flat` is the first element's flat index.
int64_t decide_by_words(const RankRule& rule, int64_t flat, int64_t blocks, const RankRoom& room, uint64_t* bits) {
  const Vu lowest = splat(rule.limits[rule.row - 1]), highest = splat(rule.limits[0]);
  int64_t open = 0;
  alignas(64) uint32_t words[kBlock];
  for (int64_t block = 0; block < blocks; ++block) {
    for_each_words(rule.key, flat + block * kBlock, [&](int j, Vu made) { store(words + j, made); });
    for (int j = 0; j < kBlock; j += kWidth) {
      const Vu word = load<Vu>(words + j);
      const Vi m = load<Vi>(room.magnitudes + block * kBlock + j);
      const Mask some = greater(m, Vi{});
      const uint32_t sure = lane_bits(some & (less(word, lowest) | greater(m, (Vi)splat(kInfBits - 1))));
      const uint32_t possible = lane_bits(some & less(word, highest));
      const int64_t first = block * kBlock + j;
      bits[first / 64] |= uint64_t{sure} << (first % 64);
      pack(possible & ~sure, word, room.words + open);
      open += pack(possible & ~sure, indices(first), room.open + open);
    }
  }
  return open;
}

// In whole blocks, sets the bits of elements that were selected by rank, and clears `selected`.
void take_selected(uint8_t* selected, int64_t blocks, uint64_t* bits) {
  for (int64_t word = 0; word < blocks * (kBlock / 64); ++word, selected += 64) {
#if defined(__AVX512F__)
    const __m512i bytes = _mm512_loadu_si512(selected);
    bits[word] |= _mm512_test_epi8_mask(bytes, bytes);
#else
    for (int byte = 0; byte < 8; ++byte) {
      uint64_t eight = 0;
      for (int bit = 0; bit < 8; ++bit) eight |= uint64_t{selected[8 * byte + bit]} << bit;
      bits[word] |= eight << (8 * byte);
    }
#endif
  }
  memset(selected - blocks * kBlock, 0, blocks * kBlock);
}

// How many of the values are greater than `than`; both are the bits of non-negative floats.
int64_t count_greater(const uint32_t* values, int64_t count, uint32_t than) {
  const Vi limit = (Vi)splat(than);
  Vu sum{};
  int64_t j = 0;
  for (; j + kWidth <= count; j += kWidth) sum += keep(greater(load<Vi>(values + j), limit), splat(uint32_t{1}));
  int64_t n = sum_lanes(sum);
  for (; j < count; ++j) n += values[j] > than;
  return n;
}

// Sorts elements of a row by descending magnitude; equals stay in order.
void sort_descending(const uint32_t* magnitudes, uint32_t* elements, uint32_t* spare, int64_t count) {
  for (int shift = 0; shift < 32; shift += 8) {
    uint32_t starts[257] = {};
    const auto digit = [&](uint32_t element) { return ~magnitudes[element] >> shift & 255; };
    for (int64_t k = 0; k < count; ++k) ++starts[digit(elements[k]) + 1];
    for (int b = 0; b < 256; ++b) starts[b + 1] += starts[b];
    for (int64_t k = 0; k < count; ++k) spare[starts[digit(elements[k])]++] = elements[k];
    uint32_t* const sorted = spare;
    spare = elements, elements = sorted;
  }  // an even number of passes: the result is back in `elements`
}

// One row: its magnitudes, and its elements that need a rank.
template <class Count>
class Row {
 public:
  // `start` is the row's first element; `open` of its elements need a rank, the first at `open_from`.
  Row(const RankRule& rule, const RankRoom& room, int64_t start, int64_t open_from, int64_t open)
      : limits_(rule.limits),
        room_(room),
        start_(start),
        n_(rule.row),
        magnitudes_(room.magnitudes + start),
        bins_(static_cast<Count*>(room.bins)),
        places_(static_cast<Count*>(room.places)),
        above_(static_cast<Count*>(room.above)),
        open_(room.open + open_from),
        words_(room.words + open_from),
        count_(open) {}

  void decide() {
    if (count_ > kCounted) {
      make_bins();
      decide_by_bins();
    }
    if (count_ > kCounted) {
      find_mixed();
      decide_by_places();
    }
    if (count_ > kCounted) {
      sort_bins();
      decide_by_places();
    }
    for (int64_t k = 0; k < count_; ++k) decide_as(k, larger(open_[k] - start_));
  }

 private:
  // Decides open element k, which is the t-th largest, from 0.
  FUSEO1_INLINE void decide_as(int64_t k, int64_t t) { room_.selected[open_[k]] = words_[k] < limits_[t]; }

  // Keeps open element k open, as number `at` of those that remain.
  FUSEO1_INLINE void retain(int64_t k, int64_t at) { open_[at] = open_[k], words_[at] = words_[k]; }

  // How many rank above an element.
  int64_t larger(int64_t element) const {
    const uint32_t mine = magnitudes_[element];
    return count_greater(magnitudes_, element, mine - 1) + count_greater(magnitudes_ + element, n_ - element, mine);
  }

  // Makes the bins, from the largest magnitudes down: each has equal high bits, the last all that is left but zeros.
  void make_bins() {
    shift_ = 23 - rank_bins_log2(n_);
    Vu most{}, least = ~Vu{};
    int64_t j = 0;
    for (; j + kWidth <= n_; j += kWidth) {
      const Vu m = load<Vu>(magnitudes_ + j);
      most = max(most, m);
      least = m - 1 < least ? m - 1 : least;  // zeros become the largest number
    }
    top_ = max_lane(most);
    uint32_t bottom = ~max_lane(~least);
    for (; j < n_; ++j) {
      if (magnitudes_[j] > top_) top_ = magnitudes_[j];
      if (magnitudes_[j] - 1 < bottom) bottom = magnitudes_[j] - 1;
    }
    const uint32_t last = (uint32_t{kRankOctaves} << rank_bins_log2(n_)) - 1;
    const uint32_t lowest = (top_ >> shift_) - ((bottom + 1) >> shift_);
    clamped_ = lowest > last;
    used_ = (clamped_ ? last : lowest) + 1;
    // Zeros get several bins of their own, because counting many in one place is slow.
    const Vu zeros = indices(used_ + 1), end = splat(used_ - 1);
    for (j = 0; j < n_; j += kWidth) {
      const Vu m = load<Vu>(magnitudes_ + j), bin = splat(top_ >> shift_) - (m >> shift_);
      store_lanes(bins_ + j, select(equal((Vi)m, Vi{}), zeros, bin < end ? bin : end));
    }
    memset(above_, 0, (used_ + 1 + kWidth) * sizeof *above_);
    count_bins();
    Count sum = 0;
    for (uint32_t bin = 0; bin <= used_; ++bin) {
      const Count here = above_[bin];
      above_[bin] = sum;
      sum = static_cast<Count>(sum + here);
    }
  }

  // Counts into above_, and notes places. Stores are the bottleneck, so four places are stored at once.
  void count_bins() {
    const Count* const bins = bins_;
    Count *const counts = above_, *const places = places_;
    const int64_t n = n_;
    int64_t j = 0;
    for (; j + 4 <= n; j += 4) {
      const Count a = counts[bins[j]]++, b = counts[bins[j + 1]]++, c = counts[bins[j + 2]]++,
                  d = counts[bins[j + 3]]++;
      const Count four[] = {a, b, c, d};
      memcpy(places + j, four, sizeof four);
    }
    for (; j < n; ++j) places[j] = counts[bins[j]]++;
  }

  void decide_by_bins() {
    // Local copies of what the loop reads, because stores of bytes may alias anything.
    const uint32_t* const limits = limits_;
    const Count *const bins = bins_ - start_, *const above = above_;
    uint32_t *const open = open_, *const words = words_;
    uint8_t* const selected = room_.selected;
    const int64_t count = count_;
    int64_t left = 0;
    for (int64_t k = 0; k < count; ++k) {
      const uint32_t element = open[k], word = words[k], bin = bins[element];
      const bool surely = word < limits[above[bin + 1] - 1], possibly = word < limits[above[bin]];
      selected[element] = surely;
      open[left] = element, words[left] = word;
      left += possibly & !surely;
    }
    count_ = left;
  }

  // Marks the bins that may hold different magnitudes. In the others all low bits are 0, so all magnitudes are equal.
  void find_mixed() {
    memset(room_.mixed, 0, used_ + 1 + kWidth);
    room_.mixed[used_ - 1] = clamped_;
    const Vu low = splat((uint32_t{1} << shift_) - 1);
    int64_t odd = 0;
    for (int64_t j = 0; j < n_; j += kWidth) {
      const Vu m = load<Vu>(magnitudes_ + j);
      const uint32_t lanes = lane_bits(greater((Vi)(m & low), Vi{}));
      odd += pack(lanes, indices(j), room_.order + odd);
    }
    const Count* const bins = bins_;
    for (int64_t k = 0; k < odd; ++k) room_.mixed[bins[room_.order[k]]] = 1;
  }

  // Decides the open elements of bins that are not mixed.
  void decide_by_places() {
    int64_t left = 0;
    for (int64_t k = 0; k < count_; ++k) {
      const int64_t element = open_[k] - start_;
      const uint32_t bin = bins_[element];
      if (room_.mixed[bin]) {
        retain(k, left++);
      } else {
        decide_as(k, above_[bin] + places_[element]);
      }
    }
    count_ = left;
  }

  // Sorts the bins of all open elements to find the places within; these bins then count as not mixed.
  void sort_bins() {
    constexpr uint8_t kWanted = 2;
    for (int64_t k = 0; k < count_; ++k) room_.mixed[bins_[open_[k] - start_]] = kWanted;
    int64_t count = 0;
    for (int64_t j = 0; j < n_; ++j) {
      room_.order[count] = static_cast<uint32_t>(j);
      count += room_.mixed[bins_[j]] == kWanted;
    }
    sort_descending(magnitudes_, room_.order, room_.spare, count);
    uint32_t bin = ~0u, place = 0;
    for (int64_t k = 0; k < count; ++k, ++place) {
      const uint32_t element = room_.order[k];
      if (bins_[element] != bin) bin = bins_[element], place = 0;
      room_.mixed[bin] = 0;
      places_[element] = static_cast<Count>(place);
    }
  }

  const uint32_t* limits_;
  const RankRoom& room_;
  const int64_t start_, n_;
  const uint32_t* magnitudes_;
  Count *bins_, *places_, *above_;
  uint32_t *open_, *words_;
  int64_t count_;

  int shift_;
  uint32_t top_, used_;
  bool clamped_;
};

void rank_run(const Chunk& pair, int64_t count, const RankRule& rule, const RankRoom& room, uint64_t* bits) {
  const int64_t rows = kRankBatch / rule.row, batch = rule.row * (rows ? rows : 1);
  for (int64_t at = 0; at < count; at += batch) {
    const int64_t here = count - at < batch ? count - at : batch, margin = at % kBlock;
    const int64_t blocks = (margin + here + kBlock - 1) / kBlock;
    uint64_t* const to = bits + (at - margin) / 64;
    memset(room.magnitudes, 0, margin * sizeof *room.magnitudes);
    load_magnitudes(pair, at, here, room.magnitudes + margin);
    const int64_t open = decide_by_words(rule, pair.offset + at - margin, blocks, room, to);
    int64_t next = 0;
    for (int64_t start = margin; start < margin + here; start += rule.row) {
      const int64_t first = next;
      while (next < open && room.open[next] < start + rule.row) ++next;
      if (next == first) continue;
      if (rule.row <= kNarrowRow) {
        Row<uint16_t>(rule, room, start, first, next - first).decide();
      } else {
        Row<uint32_t>(rule, room, start, first, next - first).decide();
      }
    }
    take_selected(room.selected, blocks, to);
  }
}

}  // namespace

extern const decltype(Kernels::rank) FUSEO1_JOIN(ranked_, FUSEO1_ISA) = rank_run;

}  // namespace fuseo1
