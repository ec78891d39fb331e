#include "kinds.hpp"

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "error.hpp"

namespace berxit {
namespace {

constexpr TaskKind kKinds[] = {
    {"classification", 2, SIZE_MAX, false, false, false, false},
    {"regression", 0, 0, true, false, false, false},
    {"multilabel", 1, 62, false, true, false, false},
    {"tokens", 3, SIZE_MAX, false, true, true, false},
    {"heads", 2, SIZE_MAX, false, true, false, true},
};
// Logit of a class that only fills a decision: its probability is 0.
constexpr float kCertain = -30000;
constexpr size_t kMostHeads = 6, kMostClasses = 511;

}  // namespace

const TaskKind* kind_named(const std::string& name) {
    for (const TaskKind& kind : kKinds)
        if (name == kind.name) return &kind;
    return nullptr;
}

std::vector<Head> heads_of(const std::vector<std::string>& labels, const std::string& place) {
    std::vector<Head> heads;
    for (size_t label = 0; label < labels.size(); ++label) {
        const size_t end = labels[label].find('=');
        if (end == std::string::npos)
            throw Failure(place + " contains '" + labels[label] + "': a label of a heads model is HEAD=CLASS. Export the"
                          " bundle again");
        const std::string name = labels[label].substr(0, end);
        if (heads.empty() || heads.back().name != name) {
            for (const Head& head : heads)
                if (head.name == name)
                    throw Failure(place + " must list the labels of a head one after the other. Export the bundle again");
            heads.push_back({name, label, 0});
        }
        ++heads.back().count;
    }
    if (heads.size() > kMostHeads)
        throw Failure(place + " has " + std::to_string(heads.size()) + " heads: a model has at most " +
                      std::to_string(kMostHeads) + ". Export the bundle again");
    for (const Head& head : heads)
        if (head.count < 2 || head.count > kMostClasses)
            throw Failure(place + ": head '" + head.name + "' must have 2 to " + std::to_string(kMostClasses) +
                          " classes. Export the bundle again");
    return heads;
}

int32_t classes_of(const TaskKind& kind, size_t labels, const std::vector<Head>& heads) {
    if (kind.heads) {
        size_t most = 0;
        for (const Head& head : heads) most = std::max(most, head.count);
        return static_cast<int32_t>(most);
    }
    return kind.regression ? 1 : kind.several && !kind.words ? 2 : static_cast<int32_t>(labels);
}

Decisions decisions_of(const TaskKind& kind, const float* logits, size_t outputs, const std::vector<Head>& heads,
                       const Words& words, std::vector<float>& buffer) {
    if (!kind.several) return {logits};
    buffer.clear();
    if (kind.heads) {
        const auto size = static_cast<size_t>(classes_of(kind, outputs, heads));
        buffer.assign(heads.size() * size, kCertain);
        for (size_t i = 0; i < heads.size(); ++i)
            std::copy_n(logits + heads[i].first, heads[i].count, buffer.begin() + static_cast<std::ptrdiff_t>(i * size));
        return {buffer.data(), heads.size()};
    }
    if (!kind.words) {
        for (size_t label = 0; label < outputs; ++label) buffer.insert(buffer.end(), {0.0f, logits[label]});
        return {buffer.data(), outputs};
    }
    for (size_t token : words.tokens) buffer.insert(buffer.end(), logits + token * outputs, logits + (token + 1) * outputs);
    if (buffer.empty()) {
        buffer.assign(outputs, kCertain);
        buffer[0] = 0;
    }
    return {buffer.data(), std::max<size_t>(1, words.size())};
}

std::vector<berxit_span> spans_of(
    const std::vector<const std::string*>& tags, const std::vector<float>& scores, const Words& words) {
    std::vector<berxit_span> spans;
    const char* open = nullptr;  // label of the span that the next word may continue
    for (size_t word = 0; word < tags.size(); ++word) {
        const std::string& tag = *tags[word];
        const char* label = tag.size() > 2 ? tag.c_str() + 2 : nullptr;
        if (label && open && !std::strcmp(label, open) && tag[0] == 'I') {
            spans.back().end = words.ends[word];
            spans.back().score = std::min(spans.back().score, scores[word]);
        } else if (label) {
            spans.push_back({words.starts[word], words.ends[word], label, scores[word]});
        }
        open = label;
    }
    return spans;
}

}  // namespace berxit
