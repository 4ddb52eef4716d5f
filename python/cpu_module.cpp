// SPDX-License-Identifier: Apache-2.0
// fuseo1_kernels.backends._cpu: the C ABI for Python. Addresses come in as integers; the caller,
// fuseo1_kernels/backends/cpu.py, owns the memory and guarantees the sizes. The GIL is released while the kernels run.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "arguments.h"
#include "average.h"
#include "dispatch.h"
#include "fold.h"
#include "fuseo1/files.h"
#include "fuseo1/fuse.h"
#include "fuseo1/survey.h"
#include "parallel.h"
#include "selects.h"

namespace py = pybind11;

namespace {

class Survey {
 public:
  Survey(int targets, int64_t numel, double select_topk, int64_t max_bytes)
      : Survey(targets,
               [&](fuseo1_survey** out) { return fuseo1_survey_create(targets, numel, select_topk, max_bytes, out); }) {
  }

  // For the cuts after `ranks`, as many for every target; `factors`, unless empty, are fp32, one per row.
  static std::unique_ptr<Survey> magnitudes(int64_t numel, const std::vector<std::vector<int64_t>>& ranks,
                                            int64_t max_bytes, int64_t row, const py::bytes& factors) {
    const int targets = static_cast<int>(ranks.size());
    const size_t per_target = ranks.empty() ? 0 : ranks[0].size();
    std::vector<int64_t> flat;
    for (const auto& of_target : ranks) {
      if (of_target.size() != per_target) throw std::invalid_argument("survey: not as many ranks for every target");
      flat.insert(flat.end(), of_target.begin(), of_target.end());
    }
    const std::string_view bytes = factors;
    const fuseo1_row_factors rows = row_factors(row, bytes);
    if (rows.factors && (row < 1 || bytes.size() / sizeof(float) != static_cast<uint64_t>(numel / row)))
      throw std::invalid_argument("survey: not as many factors as rows");
    auto made = make(targets, [&](fuseo1_survey** out) {
      return fuseo1_survey_create_magnitudes(targets, numel, flat.data(), static_cast<int>(per_target), &rows,
                                             max_bytes, out);
    });
    made->cuts_ = flat.size();
    return made;
  }

  static std::unique_ptr<Survey> norms(int64_t numel, const std::vector<fuseo1_select>& selects) {
    const int targets = static_cast<int>(selects.size());
    auto made = make(
        targets, [&](fuseo1_survey** out) { return fuseo1_survey_create_norms(targets, numel, selects.data(), out); });
    made->sums_ = 2 * selects.size();
    return made;
  }

  static std::unique_ptr<Survey> overlaps(int64_t numel, const std::vector<fuseo1_select>& selects) {
    const int targets = static_cast<int>(selects.size());
    auto made = make(targets, [&](fuseo1_survey** out) {
      return fuseo1_survey_create_overlaps(targets, numel, selects.data(), out);
    });
    made->sums_ = 2 * selects.size();
    return made;
  }

  static std::unique_ptr<Survey> gram(int targets, int64_t numel, bool of_inputs) {
    auto made =
        make(targets, [&](fuseo1_survey** out) { return fuseo1_survey_create_gram(targets, numel, of_inputs, out); });
    made->sums_ = static_cast<size_t>(targets + of_inputs) * (targets + of_inputs);
    return made;
  }

  static std::unique_ptr<Survey> divergences(int64_t numel, int64_t row) {
    auto made = make(1, [&](fuseo1_survey** out) { return fuseo1_survey_create_divergences(numel, row, out); });
    made->rows_ = static_cast<size_t>(numel / row);
    return made;
  }

  void lend(const Scratch& memory) {
    const fuseo1_scratch lent = unpack(memory);
    fuseo1_survey_lend(survey_.get(), lent.data, lent.bytes);
  }

  int phase() const { return fuseo1_survey_phase_of(survey_.get()); }

  std::pair<std::vector<int64_t>, int64_t> sample_runs() const {
    int64_t runs, length;
    fuseo1_survey_sample_shape(survey_.get(), &runs, &length);
    std::vector<int64_t> starts;
    for (int64_t r = 0; r < runs; ++r) starts.push_back(fuseo1_survey_sample_start(survey_.get(), r));
    return {starts, length};
  }

  void update(const Operands& operands, int64_t offset, int64_t count, int threads) {
    check_targets(operands);
    const auto views = unpack(operands);
    const py::gil_scoped_release nogil;
    check(fuseo1_survey_update(survey_.get(), views.data(), offset, count, threads), "survey.update");
  }

  void sample_files(const Files& files, int64_t stride, const Scratch& scratch) {
    const int inputs = targets_of(files);
    const auto views = unpack(files);
    fuseo1_read_error error = {};
    const py::gil_scoped_release nogil;
    check_read(fuseo1_survey_sample_files(survey_.get(), views.data(), inputs, stride, unpack(scratch), &error),
               "survey.sample_files", error);
  }

  void update_files(const Files& files, int64_t offset, int64_t count, const Scratch& scratch, int threads) {
    const int inputs = targets_of(files);
    const auto views = unpack(files);
    fuseo1_read_error error = {};
    const py::gil_scoped_release nogil;
    check_read(fuseo1_survey_update_files(survey_.get(), views.data(), inputs, offset, count, unpack(scratch), threads,
                                          &error),
               "survey.update_files", error);
  }

  void end_pass() {
    const py::gil_scoped_release nogil;
    check(fuseo1_survey_end_pass(survey_.get()), "survey.end_pass");
  }

  void run(const Operands& operands, int threads) {
    check_targets(operands);
    const auto views = unpack(operands);
    const py::gil_scoped_release nogil;
    check(fuseo1_survey_run(survey_.get(), views.data(), threads), "survey.run");
  }

  // (threshold, tie_limit) of every cut.
  std::vector<std::pair<uint32_t, int64_t>> cuts() const {
    std::vector<fuseo1_cut> cuts(cuts_);
    check(fuseo1_survey_cuts_of(survey_.get(), cuts.data()), "survey.cuts");
    std::vector<std::pair<uint32_t, int64_t>> out;
    for (const fuseo1_cut& cut : cuts) out.emplace_back(cut.threshold, cut.tie_limit);
    return out;
  }

  std::vector<double> sums() const {
    std::vector<double> out(sums_);
    check(fuseo1_survey_sums_of(survey_.get(), out.data()), "survey.sums");
    return out;
  }

  // fp32, one per row.
  py::bytes divergences_of() const {
    std::string out(rows_ * sizeof(float), 0);
    check(fuseo1_survey_divergences_of(survey_.get(), reinterpret_cast<float*>(out.data())), "survey.divergences_of");
    return out;
  }

  // The addresses of the masks that were kept, by target; 0: none.
  std::vector<uintptr_t> kept() const {
    std::vector<uintptr_t> out;
    for (int i = 0; i < targets_; ++i) {
      const uint64_t* bits = nullptr;
      check(fuseo1_survey_kept_of(survey_.get(), i, &bits), "survey.kept");
      out.push_back(reinterpret_cast<uintptr_t>(bits));
    }
    return out;
  }

  py::dict result() const {
    auto r = std::make_unique<fuseo1_survey_result>();
    check(fuseo1_survey_result_of(survey_.get(), r.get()), "survey.result");
    py::dict out;
    out["nonzero"] = r->nonzero;
    out["selected"] = r->selected;
    out["threshold"] = r->threshold;
    out["tie_limit"] = r->tie_limit;
    out["passes"] = r->passes;
    out["energy"] = py::tuple(py::cast(std::vector<double>(r->energy, r->energy + targets_)));
    out["nonfinite"] = py::tuple(py::cast(std::vector<int64_t>(r->nonfinite, r->nonfinite + targets_ + 2)));
    return out;
  }

 private:
  void check_targets(const Operands& operands) const {
    if (operands.size() != static_cast<size_t>(targets_) + 1)
      throw std::invalid_argument("survey: wrong number of operands");
  }

  int targets_of(const Files& files) const {
    if (files.size() != static_cast<size_t>(targets_) + 1) throw std::invalid_argument("survey: wrong number of files");
    return targets_;
  }

  template <class Create>
  Survey(int targets, const Create& create) : targets_(targets) {
    fuseo1_survey* survey = nullptr;
    check(create(&survey), "survey");
    survey_.reset(survey);
  }

  template <class Create>
  static std::unique_ptr<Survey> make(int targets, const Create& create) {
    return std::unique_ptr<Survey>(new Survey(targets, create));
  }

  struct Destroy {
    void operator()(fuseo1_survey* s) const { fuseo1_survey_destroy(s); }
  };
  int targets_;
  std::unique_ptr<fuseo1_survey, Destroy> survey_;
  size_t cuts_ = 0, sums_ = 0, rows_ = 0;  // how many of each the result has
};

// `factors` must outlive the selection.
fuseo1_select band_of(const Cut& keep, const Cut& drop, int64_t row, const py::bytes& factors) {
  return select_band(keep, drop, row_factors(row, std::string_view(factors)));
}

fuseo1_select clamp_at(double most) {
  const fuseo1::DefaultFloatingPoint guard;
  return select_clamp(static_cast<float>(most));
}

// The parameters of fuse. shares, alone and selects may be empty.
class FuseParams {
 public:
  FuseParams(const std::vector<double>& weights, const std::vector<double>& shares, const std::vector<double>& alone,
             int elect, double divisor, double floor_divisor, double scale, double base_scale,
             std::vector<fuseo1_select> selects, bool masked, uint32_t threshold, int64_t tie_limit)
      : weights_(weights), shares_(shares), alone_(alone), selects_(std::move(selects)) {
    const auto fits = [&](size_t size) { return size == 0 || size == weights.size(); };
    if (!fits(shares.size()) || !fits(alone.size()) || !fits(selects_.size()))
      throw std::invalid_argument("fuse: wrong number of shares, factors or selections");
    params_ = {static_cast<int32_t>(weights_.size()),
               weights_.data(),
               shares_.empty() ? nullptr : shares_.data(),
               alone_.empty() ? nullptr : alone_.data(),
               elect,
               divisor,
               floor_divisor,
               scale,
               base_scale,
               selects_.empty() ? nullptr : selects_.data(),
               masked,
               threshold,
               tie_limit};
  }
  FuseParams(const FuseParams&) = delete;

  const fuseo1_fuse_params* get(size_t inputs) const {
    if (inputs != weights_.size() + 1) throw std::invalid_argument("fuse: wrong number of inputs or weights");
    return &params_;
  }

 private:
  std::vector<double> weights_, shares_, alone_;
  std::vector<fuseo1_select> selects_;
  fuseo1_fuse_params params_;
};

int64_t fuse(const Operands& operands, const FuseParams& params, int64_t offset, int64_t count, uintptr_t out,
             int out_dtype, int threads) {
  const auto views = unpack(operands);
  const auto* applied = params.get(operands.size());
  int64_t nonfinite = 0;
  const py::gil_scoped_release nogil;
  check(fuseo1_fuse(applied, views.data(), offset, count, reinterpret_cast<void*>(out), out_dtype, threads, &nonfinite),
        "fuse");
  return nonfinite;
}

int64_t fuse_files(const Files& files, const FuseParams& params, int64_t offset, int64_t count, const Scratch& scratch,
                   uintptr_t out, int out_dtype, int threads) {
  const auto views = unpack(files);
  const auto* applied = params.get(files.size());
  int64_t nonfinite = 0;
  fuseo1_read_error error = {};
  const py::gil_scoped_release nogil;
  check_read(fuseo1_fuse_files(applied, views.data(), offset, count, unpack(scratch), reinterpret_cast<void*>(out),
                               out_dtype, threads, &nonfinite, &error),
             "fuse_files", error);
  return nonfinite;
}

void use_isa(const std::string& name) {
  const fuseo1::Kernels* found = fuseo1::find_kernels(name);
  if (!found) throw std::invalid_argument("this machine or build has no kernels for " + name);
  fuseo1::use_kernels(found);
}

// The benchmarks' reference: the C library's memcpy, split over threads.
void parallel_memcpy(uintptr_t to, uintptr_t from, int64_t bytes, int threads) {
  if (threads < 1 || bytes < 0) throw std::invalid_argument("parallel_memcpy: argument outside the contract");
  const py::gil_scoped_release nogil;
  const int64_t share = (bytes + threads - 1) / threads;
  fuseo1::in_parallel(threads, [&](int64_t thread) {
    const int64_t begin = thread * share;
    if (begin < bytes) {
      memcpy(reinterpret_cast<char*>(to) + begin, reinterpret_cast<const char*>(from) + begin,
             static_cast<size_t>(std::min(share, bytes - begin)));
    }
  });
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "fuseo1-kernels: the native CPU backend";
  m.attr("MAX_TARGETS") = FUSEO1_MAX_TARGETS;
  m.attr("BLOCK") = FUSEO1_BLOCK;
  // Raised with (input, errno); errno 0: the file ended.
  static const py::exception<ReadError> read_error(m, "ReadError");
  py::register_exception_translator([](std::exception_ptr raised) {
    try {
      if (raised) std::rethrow_exception(raised);
    } catch (const ReadError& e) {
      PyErr_SetObject(read_error.ptr(), py::make_tuple(e.what.input, e.what.number).ptr());
    }
  });
  m.attr("SURVEY_SAMPLE") = static_cast<int>(FUSEO1_SURVEY_SAMPLE);
  m.attr("SURVEY_DONE") = static_cast<int>(FUSEO1_SURVEY_DONE);
  define_selects(m)
      .def_static("band", &band_of, py::arg("keep"), py::arg("drop"), py::arg("row") = 1,
                  py::arg("factors") = py::bytes())
      .def_static("clamp", &clamp_at, py::arg("most"));
  py::class_<Survey>(m, "Survey")
      .def(py::init<int, int64_t, double, int64_t>(), py::arg("targets"), py::arg("numel"), py::arg("select_topk"),
           py::arg("max_bytes"))
      .def_static("magnitudes", &Survey::magnitudes, py::arg("numel"), py::arg("ranks"), py::arg("max_bytes"),
                  py::arg("row") = 1, py::arg("factors") = py::bytes())
      .def_static("norms", &Survey::norms, py::arg("numel"), py::arg("selects"))
      .def_static("overlaps", &Survey::overlaps, py::arg("numel"), py::arg("selects"))
      .def_static("gram", &Survey::gram, py::arg("targets"), py::arg("numel"), py::arg("of_inputs"))
      .def_static("divergences", &Survey::divergences, py::arg("numel"), py::arg("row"))
      .def_property_readonly("phase", &Survey::phase)
      .def("lend", &Survey::lend, py::arg("memory"))
      .def("sample_runs", &Survey::sample_runs)
      .def("update", &Survey::update, py::arg("operands"), py::arg("offset"), py::arg("count"), py::arg("threads"))
      .def("sample_files", &Survey::sample_files, py::arg("files"), py::arg("stride"), py::arg("scratch"))
      .def("update_files", &Survey::update_files, py::arg("files"), py::arg("offset"), py::arg("count"),
           py::arg("scratch"), py::arg("threads"))
      .def("end_pass", &Survey::end_pass)
      .def("run", &Survey::run, py::arg("operands"), py::arg("threads"))
      .def("result", &Survey::result)
      .def("cuts", &Survey::cuts)
      .def("sums", &Survey::sums)
      .def("divergences_of", &Survey::divergences_of)
      .def("kept", &Survey::kept);
  m.attr("ELECT_SUM") = static_cast<int>(FUSEO1_ELECT_SUM);
  m.attr("ELECT_WEIGHTED") = static_cast<int>(FUSEO1_ELECT_WEIGHTED);
  m.attr("ELECT_COUNT") = static_cast<int>(FUSEO1_ELECT_COUNT);
  m.attr("ELECT_NONE") = static_cast<int>(FUSEO1_ELECT_NONE);
  using Numbers = std::vector<double>;
  py::class_<FuseParams>(m, "FuseParams")
      .def(py::init<const Numbers&, const Numbers&, const Numbers&, int, double, double, double, double,
                    std::vector<fuseo1_select>, bool, uint32_t, int64_t>(),
           py::kw_only(), py::arg("weights"), py::arg("shares"), py::arg("alone"), py::arg("elect"), py::arg("divisor"),
           py::arg("floor_divisor"), py::arg("scale"), py::arg("base_scale"), py::arg("selects"), py::arg("masked"),
           py::arg("threshold"), py::arg("tie_limit"));
  m.def("fuse", &fuse, py::arg("operands"), py::arg("params"), py::arg("offset"), py::arg("count"), py::arg("out"),
        py::arg("out_dtype"), py::arg("threads"), "Returns how many elements were written as infinity or NaN.");
  m.def("fuse_files", &fuse_files, py::arg("files"), py::arg("params"), py::arg("offset"), py::arg("count"),
        py::arg("scratch"), py::arg("out"), py::arg("out_dtype"), py::arg("threads"), "As fuse, of inputs in files.");
  define_fold(m);
  define_average(m);
  m.def("available_isas", &fuseo1::available_isas);
  m.def("isa", [] { return std::string(fuseo1::kernels().name); });
  m.def("use_isa", &use_isa, py::arg("name"), "Use these kernels from now on; '' for the fastest.");
  m.def("parallel_memcpy", &parallel_memcpy, py::arg("to"), py::arg("source"), py::arg("bytes"), py::arg("threads"));
}
