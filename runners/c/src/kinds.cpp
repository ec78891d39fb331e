#include "kinds.hpp"

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "error.hpp"

namespace berxit {
namespace {

// Number of the class that decision `i` predicts among its first `classes` ones.
size_t predicted(const Decisions& decisions, size_t i, size_t size, size_t classes) {
    return static_cast<size_t>(largest(decisions.logits + i * size, static_cast<int32_t>(classes)));
}

Described describe_class(const std::vector<std::string>& names, const std::vector<Head>&, const Decisions& decisions, size_t size,
                         std::vector<float> scores, const Words&) {
    const size_t label = predicted(decisions, 0, size, size);
    return {std::move(scores), static_cast<int32_t>(label), names[label], {}, {}};
}

Described describe_value(const std::vector<std::string>&, const std::vector<Head>&, const Decisions&, size_t,
                         std::vector<float> scores, const Words&) {
    return {std::move(scores), -1, "", {}, {}};
}

Described describe_labels(const std::vector<std::string>& names, const std::vector<Head>&, const Decisions& decisions, size_t size,
                          std::vector<float> scores, const Words&) {
    Described found;
    for (size_t label = 0; label < names.size(); ++label) {
        found.scores.push_back(scores[size * label + 1]);
        if (!predicted(decisions, label, size, size)) continue;
        found.label_text += (found.labels.empty() ? "" : "|") + names[label];
        found.labels.push_back(names[label].c_str());
    }
    return found;
}

Described describe_words(const std::vector<std::string>& names, const std::vector<Head>&, const Decisions& decisions, size_t size,
                         std::vector<float> scores, const Words& words) {
    Described found;
    std::vector<const std::string*> tags;
    std::vector<float> of_tags;
    for (size_t word = 0; word < words.size(); ++word) {
        const size_t tag = predicted(decisions, word, size, size);
        tags.push_back(&names[tag]);
        of_tags.push_back(scores[word * size + tag]);
        found.label_text += (word ? " " : "") + names[tag];
    }
    found.spans = spans_of(tags, of_tags, words);
    return found;
}

Described describe_heads(const std::vector<std::string>& names, const std::vector<Head>& heads, const Decisions& decisions,
                         size_t size, std::vector<float> scores, const Words&) {
    Described found;
    for (size_t i = 0; i < heads.size(); ++i) {
        const float* own = &scores[i * size];
        found.scores.insert(found.scores.end(), own, own + heads[i].count);
        const std::string& label = names[heads[i].first + predicted(decisions, i, size, heads[i].count)];
        found.label_text += (i ? "|" : "") + label;
        found.labels.push_back(label.c_str());
    }
    return found;
}

constexpr TaskKind kKinds[] = {
    {"classification", 2, SIZE_MAX, false, false, false, false, describe_class},
    {"regression", 0, 0, true, false, false, false, describe_value},
    {"multilabel", 1, 62, false, true, false, false, describe_labels},
    {"tokens", 3, SIZE_MAX, false, true, true, false, describe_words},
    {"heads", 2, SIZE_MAX, false, true, false, true, describe_heads},
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

std::string kind_names() {
    std::string names;
    for (const TaskKind& kind : kKinds) names += (names.empty() ? "" : ", ") + std::string(kind.name);
    return names;
}

std::vector<Head> heads_of(const std::vector<std::string>& labels, const std::string& column, const std::string& model) {
    const std::string place = model + ": labels";
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
    const auto columns = 1 + static_cast<size_t>(std::count(column.begin(), column.end(), '|'));
    if (columns != heads.size())
        throw Failure(model + ": label_column has " + std::to_string(columns) + " columns for " + std::to_string(heads.size()) +
                      " heads. Export the bundle again");
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
