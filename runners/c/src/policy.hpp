// Exit policies: docs/bundle.md, "policy".
#pragma once

#include <string>
#include <vector>

#include "json.hpp"

namespace berxit {

enum class Criterion { confidence, entropy, lte, patience, agreement, learned, fixed };

// State of a criterion for one decision of a row, from one exit to the next.
struct DecisionState {
    bool started = false;
    float prediction = 0;  // predicted class of the last exit; its value for regression
    int streak = 0;        // consecutive exits that agreed with the exit before them
    float certainty = 0;   // of the last exit
    int exits = 0;         // number of earlier outputs, at most 2
    std::vector<double> last, second;  // class probabilities, or one value, of the last exit and of the one before it
};

// State of a policy for one row.
struct Memory {
    std::vector<DecisionState> decisions;
    std::vector<float> window;  // certainties of the last exits, at most patience - 1
};

// The decisions of a row: `count` times the logits of a decision.
struct Decisions {
    const float* logits;
    size_t count = 1;
};

class ExitPolicy {
public:
    // Throws Failure for a number out of range, and for settings that contradict each other or the model.
    // `outputs`: classes of a decision, 1 for regression. `several`: the model's texts have several decisions.
    ExitPolicy(const Json& json, const std::string& place, int32_t outputs, bool lte, bool several = false);

    // The policy with the same threshold at every layer, for every class. Throws InputError.
    ExitPolicy with_threshold(double threshold) const;

    int32_t layers() const { return static_cast<int32_t>(temperatures_.size()); }
    int32_t schema_version() const;

    // Certainty of one row at `layer`, that of its least certain decision. `lte`: null if the model has no LTE module.
    float certainty(int32_t layer, const Decisions& row, const float* lte, Memory& memory) const;
    bool exits(int32_t layer, float certainty, const Decisions& row) const;
    // Class probabilities of a decision; the value for regression.
    void scores(int32_t layer, const float* logits, float* scores) const;

private:
    Criterion criterion_;
    std::vector<std::vector<double>> thresholds_;  // one number per layer, or one per class
    std::vector<double> temperatures_;
    double tolerance_ = 0.5;
    int32_t patience_ = 1;
    std::vector<bool> off_;
    std::vector<std::vector<double>> weights_;
    int32_t outputs_;

    const char* name() const;
    bool counts() const { return criterion_ == Criterion::patience || criterion_ == Criterion::fixed; }
    void check_threshold(double threshold) const;
    void check(bool lte, bool several) const;
    float least(const float* certainties, size_t count) const;
    float own_certainty(int32_t layer, const Decisions& row, const float* lte, Memory& memory) const;
    float certainty_of(int32_t layer, const float* logits, const float* lte, DecisionState& memory) const;
    float learned(int32_t layer, const float* logits, const float* lte, DecisionState& memory) const;
};

// Index of the largest value; the first of several.
int32_t largest(const float* values, int32_t count);

}  // namespace berxit
