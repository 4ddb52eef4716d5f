// SPDX-License-Identifier: Apache-2.0
// fuseo1_kernels.backends._cuda: the C ABI of include/fuseo1/cuda.h for Python. Addresses, of host and device memory,
// and streams come in as integers; the caller, fuseo1_kernels/backends/cuda/, owns the memory and guarantees the sizes.
// Nothing here waits for the device.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "fuseo1/cuda.h"
#include "selects.h"

namespace py = pybind11;

namespace {

using Operands = std::vector<std::pair<uintptr_t, int>>;  // (address, dtype), the base first

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

std::vector<fuseo1_operand> unpack(const Operands& operands) {
  std::vector<fuseo1_operand> out;
  for (const auto& [address, dtype] : operands) out.push_back({at<const void>(address), dtype});
  return out;
}

int targets_of(const Operands& operands) { return static_cast<int>(operands.size()) - 1; }

void check(int status, const char* what) {
  if (status == FUSEO1_OK) return;
  if (status == FUSEO1_BAD_ARGUMENT) throw std::invalid_argument(std::string(what) + ": argument outside the contract");
  throw std::runtime_error(fuseo1_cuda_last_error());
}

int64_t workspace_bytes(int targets, int64_t numel, double select_topk) {
  size_t bytes = 0;
  check(fuseo1_cuda_workspace_bytes(targets, numel, select_topk, &bytes), "workspace_bytes");
  return static_cast<int64_t>(bytes);
}

void survey(const Operands& operands, int64_t numel, double select_topk, bool mergekit, uintptr_t workspace,
            int64_t bytes, uintptr_t result, uintptr_t params, uintptr_t stream) {
  const auto views = unpack(operands);
  const fuseo1_cuda_sce how = {select_topk, mergekit};
  const py::gil_scoped_release nogil;
  check(fuseo1_cuda_survey_sce(views.data(), targets_of(operands), numel, how, at<void>(workspace),
                               static_cast<size_t>(bytes), at<fuseo1_cuda_survey>(result),
                               at<fuseo1_cuda_params>(params), at<void>(stream)),
        "survey");
}

void fuse(uintptr_t params, const Operands& operands, int64_t offset, int64_t count, uintptr_t out, int out_dtype,
          uintptr_t result, uintptr_t stream) {
  const auto views = unpack(operands);
  const py::gil_scoped_release nogil;
  check(fuseo1_cuda_fuse(at<const fuseo1_cuda_params>(params), views.data(), targets_of(operands), offset, count,
                         at<void>(out), out_dtype, at<fuseo1_cuda_survey>(result), at<void>(stream)),
        "fuse");
}

using Selects = std::vector<fuseo1_select>;
using Room = std::pair<uintptr_t, int64_t>;  // (address, bytes)

using Rows = std::pair<int64_t, uintptr_t>;  // (elements of a row, address of the factors; 0: no factors)

fuseo1_row_factors unpack(const Rows& rows) { return {at<const float>(rows.second), rows.first}; }

fuseo1_select band_of(const Cut& keep, const Cut& drop, const Rows& rows) {
  return select_band(keep, drop, unpack(rows));
}

fuseo1_select clamp_at(double most) { return select_clamp(static_cast<float>(most)); }

int64_t deciding_bytes(const Selects& selects, int64_t numel) {
  size_t bytes = 0;
  check(fuseo1_cuda_deciding_bytes(selects.data(), static_cast<int32_t>(selects.size()), numel, &bytes),
        "deciding_bytes");
  return static_cast<int64_t>(bytes);
}

// nullptr if there are none.
template <class T>
const T* data_of(const std::vector<T>& values, const Operands& operands, const char* what) {
  if (values.empty()) return nullptr;
  if (values.size() + 1 != operands.size()) throw std::invalid_argument(std::string(what) + ": not one a target");
  return values.data();
}

void fuse_general(const Operands& operands, const std::vector<double>& weights, const std::vector<double>& shares,
                  const std::vector<double>& alone, int elect, double divisor, double floor_divisor, double scale,
                  double base_scale, const Selects& selects, bool masked, uint32_t threshold, int64_t tie_limit,
                  int64_t offset, int64_t count, uintptr_t out, int out_dtype, uintptr_t written, const Room& room,
                  uintptr_t stream) {
  const auto views = unpack(operands);
  const fuseo1_fuse_params params = {targets_of(operands),
                                     data_of(weights, operands, "weights"),
                                     data_of(shares, operands, "shares"),
                                     data_of(alone, operands, "alone"),
                                     elect,
                                     divisor,
                                     floor_divisor,
                                     scale,
                                     base_scale,
                                     data_of(selects, operands, "selects"),
                                     masked,
                                     threshold,
                                     tie_limit};
  const py::gil_scoped_release nogil;
  check(fuseo1_cuda_fuse_general(&params, views.data(), offset, count, at<void>(out), out_dtype, at<int64_t>(written),
                                 at<void>(room.first), static_cast<size_t>(room.second), at<void>(stream)),
        "fuse_general");
}

// kSurvey: that of norms or of overlaps.
template <decltype(fuseo1_cuda_survey_norms)* kSurvey>
void survey_selected(const Operands& operands, int64_t numel, const Selects& selects, uintptr_t work, const Room& room,
                     uintptr_t result, uintptr_t stream) {
  const auto views = unpack(operands);
  const auto* const taken = data_of(selects, operands, "selects");
  const py::gil_scoped_release nogil;
  check(kSurvey(views.data(), targets_of(operands), numel, taken, at<void>(work), at<void>(room.first),
                static_cast<size_t>(room.second), at<fuseo1_cuda_sums>(result), at<void>(stream)),
        "survey");
}

void survey_gram(const Operands& operands, int64_t numel, bool of_inputs, uintptr_t work, uintptr_t result,
                 uintptr_t stream) {
  const auto views = unpack(operands);
  const py::gil_scoped_release nogil;
  check(fuseo1_cuda_survey_gram(views.data(), targets_of(operands), numel, of_inputs, at<void>(work),
                                at<fuseo1_cuda_sums>(result), at<void>(stream)),
        "survey_gram");
}

int64_t magnitudes_bytes(int64_t numel) {
  size_t bytes = 0;
  check(fuseo1_cuda_magnitudes_bytes(numel, &bytes), "magnitudes_bytes");
  return static_cast<int64_t>(bytes);
}

void survey_magnitudes(const Operands& operands, int64_t numel, const std::vector<std::vector<int64_t>>& ranks,
                       const Rows& rows, const Room& workspace, uintptr_t cuts, uintptr_t result, uintptr_t stream) {
  const auto views = unpack(operands);
  const int targets = targets_of(operands), per_target = ranks.empty() ? 0 : static_cast<int>(ranks[0].size());
  if (ranks.size() != static_cast<size_t>(targets)) throw std::invalid_argument("ranks: not for every target");
  std::vector<int64_t> all;
  for (const auto& of_target : ranks) {
    if (of_target.size() != ranks[0].size()) throw std::invalid_argument("ranks: not as many for every target");
    all.insert(all.end(), of_target.begin(), of_target.end());
  }
  const py::gil_scoped_release nogil;
  check(fuseo1_cuda_survey_magnitudes(views.data(), targets, numel, all.data(), per_target, unpack(rows),
                                      at<void>(workspace.first), static_cast<size_t>(workspace.second),
                                      at<fuseo1_cut>(cuts), at<fuseo1_cuda_sums>(result), at<void>(stream)),
        "survey_magnitudes");
}

void survey_divergences(const Operands& operands, int64_t numel, int64_t row, uintptr_t divergences, uintptr_t result,
                        uintptr_t stream) {
  const auto views = unpack(operands);
  if (targets_of(operands) != 1) throw std::invalid_argument("survey_divergences: not one target");
  const py::gil_scoped_release nogil;
  check(fuseo1_cuda_survey_divergences(views.data(), numel, row, at<float>(divergences), at<fuseo1_cuda_sums>(result),
                                       at<void>(stream)),
        "survey_divergences");
}

void merge_small(uintptr_t tensors, int64_t count, int targets, double select_topk, bool mergekit, uintptr_t results,
                 uintptr_t stream) {
  const py::gil_scoped_release nogil;
  check(fuseo1_cuda_merge_small(at<const fuseo1_cuda_tensor>(tensors), count, targets, {select_topk, mergekit},
                                at<fuseo1_cuda_survey>(results), at<void>(stream)),
        "merge_small");
}

// --- the structs on the device, as bytes ---

template <class T>
py::bytes as_bytes(const T& value) {
  return py::bytes(reinterpret_cast<const char*>(&value), sizeof value);
}

py::bytes pack_params(const std::vector<double>& weights, double floor_divisor, bool masked, uint32_t threshold,
                      int64_t tie_limit) {
  if (weights.size() > FUSEO1_CUDA_MAX_TARGETS) throw std::invalid_argument("pack_params: too many weights");
  fuseo1_cuda_params params = {};
  std::copy(weights.begin(), weights.end(), params.weights);
  params.floor_divisor = floor_divisor;
  params.masked = masked;
  params.threshold = threshold;
  params.tie_limit = tie_limit;
  return as_bytes(params);
}

py::bytes pack_tensor(const Operands& operands, int64_t numel, uintptr_t out, int out_dtype) {
  if (targets_of(operands) < 1 || targets_of(operands) > FUSEO1_CUDA_MAX_TARGETS || numel > FUSEO1_CUDA_SMALL) {
    throw std::invalid_argument("pack_tensor: argument outside the contract");
  }
  fuseo1_cuda_tensor tensor = {};
  const auto views = unpack(operands);
  std::copy(views.begin(), views.end(), tensor.operands);
  tensor.numel = numel;
  tensor.out = at<void>(out);
  tensor.out_dtype = out_dtype;
  return as_bytes(tensor);
}

// (the fields of SceResult, how many outputs were infinite or NaN)
std::pair<py::dict, int64_t> unpack_result(const py::bytes& bytes, int targets) {
  const std::string raw = bytes;
  fuseo1_cuda_survey result;
  if (raw.size() != sizeof result || targets < 1 || targets > FUSEO1_CUDA_MAX_TARGETS) {
    throw std::invalid_argument("unpack_result: argument outside the contract");
  }
  std::memcpy(&result, raw.data(), sizeof result);
  py::tuple energy(targets), nonfinite(targets + 2);
  for (int i = 0; i < targets; ++i) energy[i] = result.energy[i];
  for (int i = 0; i < targets + 2; ++i) nonfinite[i] = result.nonfinite[i];
  py::dict fields;
  fields["nonzero"] = result.nonzero;
  fields["selected"] = result.selected;
  fields["threshold"] = result.threshold;
  fields["tie_limit"] = result.tie_limit;
  fields["passes"] = result.passes;
  fields["energy"] = energy;
  fields["nonfinite"] = nonfinite;
  return {fields, result.written};
}

// (sums, non-finite elements of base and targets and overflows, reads)
std::tuple<std::vector<double>, std::vector<int64_t>, int> unpack_sums(const py::bytes& bytes, int sums, int targets) {
  const std::string raw = bytes;
  fuseo1_cuda_sums result;
  constexpr int kMost = sizeof result.sums / sizeof *result.sums;
  if (raw.size() != sizeof result || sums < 0 || sums > kMost || targets < 1 || targets > FUSEO1_CUDA_MAX_TARGETS) {
    throw std::invalid_argument("unpack_sums: argument outside the contract");
  }
  std::memcpy(&result, raw.data(), sizeof result);
  return {{result.sums, result.sums + sums}, {result.nonfinite, result.nonfinite + targets + 2}, result.passes};
}

std::vector<Cut> unpack_cuts(const py::bytes& bytes) {
  const std::string raw = bytes;
  std::vector<fuseo1_cut> cuts(raw.size() / sizeof(fuseo1_cut));
  std::memcpy(cuts.data(), raw.data(), cuts.size() * sizeof(fuseo1_cut));
  std::vector<Cut> out;
  for (const auto& cut : cuts) out.emplace_back(cut.threshold, cut.tie_limit);
  return out;
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "survey and fuse on NVIDIA GPUs (csrc/include/fuseo1/cuda.h).";
  m.attr("MAX_TARGETS") = FUSEO1_CUDA_MAX_TARGETS;
  m.attr("SMALL") = FUSEO1_CUDA_SMALL;
  m.attr("PARAMS_BYTES") = sizeof(fuseo1_cuda_params);
  m.attr("RESULT_BYTES") = sizeof(fuseo1_cuda_survey);
  m.attr("ARCHITECTURES") = FUSEO1_CUDA_ARCHITECTURES;
  // The runtime is asked only where nothing else tells: it makes a context, on a GPU that the merge may not be for.
  m.def("problem", [] { return std::string(fuseo1_cuda_has_code() ? "" : fuseo1_cuda_problem()); });
  m.def("workspace_bytes", workspace_bytes, py::arg("targets"), py::arg("numel"), py::arg("select_topk"));
  m.def("survey", survey, py::arg("operands"), py::arg("numel"), py::arg("select_topk"), py::arg("mergekit"),
        py::arg("workspace"), py::arg("bytes"), py::arg("result"), py::arg("params"), py::arg("stream"));
  m.def("fuse", fuse, py::arg("params"), py::arg("operands"), py::arg("offset"), py::arg("count"), py::arg("out"),
        py::arg("out_dtype"), py::arg("result"), py::arg("stream"));
  m.attr("ELECT_SUM") = static_cast<int>(FUSEO1_ELECT_SUM);
  m.attr("ELECT_WEIGHTED") = static_cast<int>(FUSEO1_ELECT_WEIGHTED);
  m.attr("ELECT_COUNT") = static_cast<int>(FUSEO1_ELECT_COUNT);
  m.attr("ELECT_NONE") = static_cast<int>(FUSEO1_ELECT_NONE);
  define_selects(m)
      .def_static("band", &band_of, py::arg("keep"), py::arg("drop"), py::arg("rows"))
      .def_static("clamp", &clamp_at, py::arg("most"));
  m.def("deciding_bytes", deciding_bytes, py::arg("selects"), py::arg("numel"));
  m.def("fuse_general", fuse_general, py::arg("operands"), py::kw_only(), py::arg("weights"), py::arg("shares"),
        py::arg("alone"), py::arg("elect"), py::arg("divisor"), py::arg("floor_divisor"), py::arg("scale"),
        py::arg("base_scale"), py::arg("selects"), py::arg("masked"), py::arg("threshold"), py::arg("tie_limit"),
        py::arg("offset"), py::arg("count"), py::arg("out"), py::arg("out_dtype"), py::arg("written"), py::arg("room"),
        py::arg("stream"));
  m.attr("SUMS_BYTES") = sizeof(fuseo1_cuda_sums);
  m.attr("SUMS_WORK_BYTES") = FUSEO1_CUDA_SUMS_BYTES;
  m.def("survey_norms", survey_selected<fuseo1_cuda_survey_norms>, py::arg("operands"), py::arg("numel"),
        py::arg("selects"), py::arg("work"), py::arg("room"), py::arg("result"), py::arg("stream"));
  m.def("survey_overlaps", survey_selected<fuseo1_cuda_survey_overlaps>, py::arg("operands"), py::arg("numel"),
        py::arg("selects"), py::arg("work"), py::arg("room"), py::arg("result"), py::arg("stream"));
  m.def("survey_gram", survey_gram, py::arg("operands"), py::arg("numel"), py::arg("of_inputs"), py::arg("work"),
        py::arg("result"), py::arg("stream"));
  m.def("unpack_sums", unpack_sums, py::arg("bytes"), py::arg("sums"), py::arg("targets"));
  m.attr("CUT_BYTES") = sizeof(fuseo1_cut);
  m.def("magnitudes_bytes", magnitudes_bytes, py::arg("numel"));
  m.def("survey_magnitudes", survey_magnitudes, py::arg("operands"), py::arg("numel"), py::arg("ranks"),
        py::arg("rows"), py::arg("workspace"), py::arg("cuts"), py::arg("result"), py::arg("stream"));
  m.def("survey_divergences", survey_divergences, py::arg("operands"), py::arg("numel"), py::arg("row"),
        py::arg("divergences"), py::arg("result"), py::arg("stream"));
  m.def("unpack_cuts", unpack_cuts, py::arg("bytes"));
  m.def("merge_small", merge_small, py::arg("tensors"), py::arg("count"), py::arg("targets"), py::arg("select_topk"),
        py::arg("mergekit"), py::arg("results"), py::arg("stream"));
  m.def("pack_params", pack_params, py::arg("weights"), py::arg("floor_divisor"), py::arg("masked"),
        py::arg("threshold"), py::arg("tie_limit"));
  m.def("pack_tensor", pack_tensor, py::arg("operands"), py::arg("numel"), py::arg("out"), py::arg("out_dtype"));
  m.def("unpack_result", unpack_result, py::arg("bytes"), py::arg("targets"));
}
