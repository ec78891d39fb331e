#include "policy.hpp"

#include <algorithm>
#include <cfloat>
#include <cmath>

#include "error.hpp"

namespace berxit {
namespace {

constexpr const char* kNames[] = {"confidence", "entropy", "lte", "patience", "agreement", "learned", "fixed"};
constexpr int32_t kClassificationFeatures = 6, kRegressionFeatures = 5;

// Largest probability: 1 / sum of exp(logit - largest logit).
float confidence_of(const float* logits, int32_t count) {
    const float top = logits[largest(logits, count)];
    float total = 0;
    for (int32_t i = 0; i < count; ++i) total += std::exp(logits[i] - top);
    return 1 / total;
}

float entropy_of(const float* logits, int32_t count) {
    const float top = logits[largest(logits, count)];
    float total = 0, sum = 0;
    for (int32_t i = 0; i < count; ++i) {
        const float shifted = logits[i] - top, power = std::exp(shifted);
        total += power;
        if (power != 0) sum += power * shifted;  // 0 ln 0 = 0, where 0 x -inf is NaN
    }
    return std::log(total) - sum / total;
}

}  // namespace

int32_t largest(const float* values, int32_t count) {
    return static_cast<int32_t>(std::max_element(values, values + count) - values);
}

ExitPolicy::ExitPolicy(const Json& json, const std::string& place, int32_t outputs, bool lte, bool several)
    : outputs_(outputs) {
    const Fields fields(json, place, {"criterion", "thresholds", "temperatures"}, {"tolerance", "patience", "off", "weights"});
    const std::string& name = fields.string("criterion");
    const auto found = std::find(std::begin(kNames), std::end(kNames), name);
    if (found == std::end(kNames))
        throw Failure(place + ": unknown exit criterion " + quoted(name) +
                      ": this runner knows confidence, entropy, lte, patience, agreement, learned and fixed. Use the Python"
                      " runner, or calibrate with one of these");
    criterion_ = static_cast<Criterion>(found - std::begin(kNames));
    for (const Json& threshold : fields.array("thresholds"))
        thresholds_.push_back(threshold.is_number() ? std::vector<double>{threshold.number()}
                                                    : Fields::numbers(threshold, fields.at("thresholds")));
    // A list of one number for a regression model would look like a number.
    for (const Json& threshold : fields.array("thresholds"))
        if (threshold.is_array() && several)
            throw Failure(place + ": thresholds per class need one class per text. Export the bundle again");
        else if (threshold.is_array() && (outputs_ == 1 || threshold.array().size() != static_cast<size_t>(outputs_)))
            throw Failure(place + ": a threshold has " + std::to_string(threshold.array().size()) +
                          " numbers: it needs one, or one per class. Export the bundle again");
    temperatures_ = fields.numbers("temperatures");
    if (fields.has("tolerance")) tolerance_ = fields.number("tolerance");
    if (fields.has("patience")) patience_ = fields.whole("patience");
    off_.resize(temperatures_.size() + 1);
    if (fields.has("weights"))
        for (const Json& row : fields.array("weights")) weights_.push_back(Fields::numbers(row, fields.at("weights")));
    try {
        if (fields.has("off"))
            for (int32_t layer : fields.wholes("off")) {
                if (layer < 1 || layer >= layers())
                    throw InputError("exit " + std::to_string(layer) + " cannot be switched off");
                off_[static_cast<size_t>(layer)] = true;
            }
        check(lte, several);
    } catch (const InputError& error) {
        throw Failure(place + ": " + error.what() + ". Export the bundle again");
    }
}

void ExitPolicy::check(bool lte, bool several) const {
    const std::string quoted_name = std::string("'") + name() + "'";
    if (several && criterion_ == Criterion::learned)
        throw InputError(quoted_name + " needs one class per text: use confidence, entropy, patience or lte");
    if (temperatures_.size() != thresholds_.size() + 1)
        throw InputError(std::to_string(thresholds_.size()) + " thresholds and " + std::to_string(temperatures_.size()) +
                         " temperatures: n layers need n - 1 and n");
    for (const auto& numbers : thresholds_)
        for (double number : numbers) check_threshold(number);
    for (double temperature : temperatures_)
        if (!(temperature > 0)) throw InputError("temperatures must be finite and above 0");
    if (!(tolerance_ >= 0)) throw InputError("tolerance is " + text_of(tolerance_) + ": it must be at least 0");
    if (patience_ < 1 || patience_ > layers() || (patience_ > 1 && counts()))
        throw InputError("patience is " + std::to_string(patience_) + ": it must be from 1 to " + std::to_string(layers()) +
                         ", and 1 with the criteria patience and fixed");
    const bool fitted = criterion_ == Criterion::learned, regression = outputs_ == 1;
    if (weights_.size() != (fitted ? thresholds_.size() : 0))
        throw InputError(quoted_name + " has " + std::to_string(weights_.size()) + " rows of weights for " +
                         std::to_string(layers()) + " layers");
    const size_t features = regression ? kRegressionFeatures : kClassificationFeatures;
    for (const auto& row : weights_)
        if (row.size() != features + 1)
            throw InputError(quoted_name + " has " + std::to_string(row.size()) + " weights at a layer: this model needs " +
                             std::to_string(features + 1));
    if (regression && fitted && !(tolerance_ > 0))
        throw InputError("'learned' needs a tolerance above 0 for regression");
    if (regression && (criterion_ == Criterion::confidence || criterion_ == Criterion::entropy ||
                       criterion_ == Criterion::agreement))
        throw InputError(quoted_name + " needs class probabilities: use lte, patience or learned for regression");
    if (criterion_ == Criterion::lte && !lte) throw InputError("'lte' needs a model trained with --lte");
}

void ExitPolicy::check_threshold(double threshold) const {
    const bool probability =
        criterion_ == Criterion::confidence || criterion_ == Criterion::lte || criterion_ == Criterion::learned;
    const double low = counts() ? 1 : 0;
    if (std::isfinite(threshold) && threshold >= low && (!probability || threshold <= 1)) return;
    throw InputError("threshold " + text_of(threshold) + " is out of range: for " + name() +
                     " it must be a finite number of at least " + text_of(low) + (probability ? " and at most 1" : ""));
}

ExitPolicy ExitPolicy::with_threshold(double threshold) const {
    check_threshold(threshold);
    ExitPolicy policy = *this;
    for (auto& numbers : policy.thresholds_) numbers = {threshold};
    return policy;
}

const char* ExitPolicy::name() const { return kNames[static_cast<int>(criterion_)]; }

int32_t ExitPolicy::schema_version() const {
    const bool newer = criterion_ == Criterion::agreement || criterion_ == Criterion::learned || criterion_ == Criterion::fixed;
    const bool per_class = std::any_of(
        thresholds_.begin(), thresholds_.end(), [](const std::vector<double>& numbers) { return numbers.size() > 1; });
    const bool off = std::find(off_.begin(), off_.end(), true) != off_.end();
    return newer || per_class || off || patience_ > 1 || !weights_.empty() ? 2 : 1;
}

float ExitPolicy::certainty(int32_t layer, const Decisions& row, const float* lte, Memory& memory) const {
    if (patience_ == 1 && !off_[static_cast<size_t>(layer)]) return own_certainty(layer, row, lte, memory);
    Memory after = memory;
    std::vector<float> recent = after.window;
    recent.push_back(own_certainty(layer, row, lte, after));
    float found = criterion_ == Criterion::entropy ? FLT_MAX : 0;  // passes no threshold
    if (recent.size() >= static_cast<size_t>(patience_)) found = least(recent.data(), recent.size());
    if (recent.size() >= static_cast<size_t>(patience_)) recent.erase(recent.begin());
    after.window = std::move(recent);
    if (!off_[static_cast<size_t>(layer)]) memory = std::move(after);
    return found;
}

// The least certain of several certainties.
float ExitPolicy::least(const float* certainties, size_t count) const {
    const float* const end = certainties + count;
    return criterion_ == Criterion::entropy ? *std::max_element(certainties, end) : *std::min_element(certainties, end);
}

float ExitPolicy::own_certainty(int32_t layer, const Decisions& row, const float* lte, Memory& memory) const {
    memory.decisions.resize(row.count);
    if (row.count == 1) return certainty_of(layer, row.logits, lte, memory.decisions[0]);
    std::vector<float> found;
    for (size_t i = 0; i < row.count; ++i)
        found.push_back(certainty_of(layer, row.logits + i * static_cast<size_t>(outputs_), lte, memory.decisions[i]));
    return least(found.data(), found.size());
}

float ExitPolicy::certainty_of(int32_t layer, const float* logits, const float* lte, DecisionState& memory) const {
    const bool regression = outputs_ == 1, first = !memory.started;
    const float temperature = static_cast<float>(temperatures_[static_cast<size_t>(layer - 1)]);
    std::vector<float> scaled;
    if (!regression && temperature != 1) {
        for (int32_t i = 0; i < outputs_; ++i) scaled.push_back(logits[i] / temperature);
        logits = scaled.data();
    }
    const float prediction = regression ? logits[0] : static_cast<float>(largest(logits, outputs_));
    const bool agrees = !first &&
        (regression ? std::fabs(prediction - memory.prediction) < static_cast<float>(tolerance_)
                    : prediction == memory.prediction);
    memory.streak = agrees ? memory.streak + 1 : 0;
    memory.prediction = prediction;
    memory.started = true;
    switch (criterion_) {
    case Criterion::confidence: memory.certainty = confidence_of(logits, outputs_); break;
    case Criterion::entropy: memory.certainty = entropy_of(logits, outputs_); break;
    case Criterion::lte: memory.certainty = *lte; break;
    case Criterion::patience: memory.certainty = static_cast<float>(memory.streak); break;
    case Criterion::agreement:
        memory.certainty = confidence_of(logits, outputs_) + (agrees ? memory.certainty : 0);
        break;
    case Criterion::learned: memory.certainty = learned(layer, logits, lte, memory); break;
    case Criterion::fixed: memory.certainty = first ? 1 : memory.certainty + 1; break;
    }
    return memory.certainty;
}

float ExitPolicy::learned(int32_t layer, const float* logits, const float* lte, DecisionState& memory) const {
    double features[kClassificationFeatures] = {};
    std::vector<double> outputs(static_cast<size_t>(outputs_));
    if (outputs_ == 1) {
        const double value = logits[0], size = value / tolerance_;
        outputs[0] = value;
        if (memory.exits > 0) features[0] = std::log(std::fabs(value - memory.last[0]) / tolerance_ + 0.01);
        if (memory.exits > 1) features[1] = std::log(std::fabs(value - memory.second[0]) / tolerance_ + 0.01);
        features[2] = size;
        features[3] = size * size;
        if (lte) {
            const double limited = std::min(std::max(static_cast<double>(*lte), 1e-6), 1 - 1e-6);
            features[4] = std::log(limited / (1 - limited));
        }
    } else {
        const auto predicted = static_cast<size_t>(largest(logits, outputs_));
        double rest = 0;  // without the largest power, 1, so that a small sum does not lose its digits
        for (size_t i = 0; i < outputs.size(); ++i) {
            outputs[i] = std::exp(static_cast<double>(logits[i]) - static_cast<double>(logits[predicted]));
            if (i != predicted) rest += outputs[i];
        }
        for (double& power : outputs) power /= 1 + rest;
        features[0] = 1 / (1 + rest);
        features[1] = -std::log(std::max(rest, 1e-9));
        features[2] = std::min(memory.streak, 3);
        if (memory.exits > 0) features[3] = memory.last[predicted];
        if (memory.exits > 1) features[4] = memory.second[predicted];
        if (lte) features[5] = *lte;
    }
    memory.second = std::move(memory.last);
    memory.last = std::move(outputs);
    memory.exits = std::min(memory.exits + 1, 2);
    if (layer == layers()) return 1;
    const std::vector<double>& weights = weights_[static_cast<size_t>(layer - 1)];
    double score = weights[0];
    for (size_t i = 1; i < weights.size(); ++i) score += weights[i] * features[i - 1];
    return static_cast<float>(1 / (1 + std::exp(-std::min(std::max(score, -30.0), 30.0))));
}

bool ExitPolicy::exits(int32_t layer, float certainty, const Decisions& row) const {
    if (layer >= layers()) return true;
    if (off_[static_cast<size_t>(layer)]) return false;
    const std::vector<double>& numbers = thresholds_[static_cast<size_t>(layer - 1)];
    const auto place = numbers.size() > 1 ? static_cast<size_t>(largest(row.logits, outputs_)) : 0;
    const float threshold = static_cast<float>(numbers[place]);
    if (counts()) return certainty >= threshold;
    return criterion_ == Criterion::entropy ? certainty < threshold : certainty > threshold;
}

void ExitPolicy::scores(int32_t layer, const float* logits, float* scores) const {
    if (outputs_ == 1) {
        scores[0] = logits[0];
        return;
    }
    const float temperature = static_cast<float>(temperatures_[static_cast<size_t>(layer - 1)]);
    const float top = logits[largest(logits, outputs_)] / temperature;
    float total = 0;
    for (int32_t i = 0; i < outputs_; ++i) total += scores[i] = std::exp(logits[i] / temperature - top);
    for (int32_t i = 0; i < outputs_; ++i) scores[i] /= total;
}

}  // namespace berxit
