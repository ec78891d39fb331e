// Deadlines: an exit policy that also exits when the next exit may be reached too late.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <mutex>
#include <vector>

#include "error.hpp"

namespace berxit {

constexpr double kMissProbability = 0.01;
constexpr double kReserve = 1e-4;  // seconds reserved for the work after the last layer

// Margin of the estimated time of the next segment, controlled by the missed deadlines. All calls of a runner share one.
class StepEstimator {
public:
    explicit StepEstimator(double miss_probability = kMissProbability) : miss_probability_(miss_probability) {
        if (!(miss_probability > 0 && miss_probability < 1))
            throw InputError("miss_probability is " + text_of(miss_probability) + ": it must be above 0 and below 1");
    }

    double margin() const {
        const std::lock_guard<std::mutex> lock(mutex_);
        return std::exp(log_margin_);
    }

    void observe(bool missed) {
        constexpr double kRate = 0.25;
        const std::lock_guard<std::mutex> lock(mutex_);
        log_margin_ = std::min(std::max(log_margin_ + kRate * (missed - miss_probability_ / 2), 0.0), std::log(16.0));
    }

private:
    const double miss_probability_;
    mutable std::mutex mutex_;
    double log_margin_ = std::log(2.0);
};

// The deadline of the rows that run together. The first exit is always computed.
class Deadline {
public:
    // `exits`: layers with an exit. `end`, `now`: in seconds. `opening`: seconds until the first segment is loaded.
    Deadline(const std::vector<int32_t>& exits, double end, StepEstimator& estimator, double now, double opening = 0)
        : exits_(exits), end_(end), estimator_(estimator), margin_(estimator.margin()), last_(now), waits_(opening > 0) {}

    // True if all rows must exit at the exit number `place`, which was reached at the time `now`. `some`, `all`: whether
    // rows exit by their certainty. `opening`: seconds until the next segment is loaded.
    bool stops(size_t place, bool some, bool all, double now, double opening = 0) {
        // The time of a segment that waited for its file does not predict other segments.
        if (!(slowest_ > 0 && waits_)) slowest_ = std::max(slowest_, (now - last_) / gap_of(place));
        last_ = now;
        // If the first exit or the opening of a file was late, no margin could have prevented the miss.
        const bool preventable = place > 0 && !waits_;
        bool stop = true;
        if (!all && place + 1 < exits_.size()) {
            stop = now + opening + margin_ * slowest_ * gap_of(place + 1) > end_;
            waits_ = opening > 0;
        }
        const bool missed = end_ < now;
        if ((some || stop) && (!missed || preventable)) {
            counted_ = true;
            missed_ = missed_ || missed;
        }
        if (stop && counted_) estimator_.observe(missed_);
        return stop;
    }

private:
    const std::vector<int32_t>& exits_;
    const double end_;
    StepEstimator& estimator_;
    const double margin_;
    double last_, slowest_ = 0;
    bool waits_, counted_ = false, missed_ = false;

    // Number of layers since the previous exit. The time of a segment is proportional to it.
    double gap_of(size_t place) const { return exits_[place] - (place ? exits_[place - 1] : 0); }
};

}  // namespace berxit
