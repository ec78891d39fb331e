/// Kind of a model: what its prediction for a text is, and which decisions a text has (docs/bundle.md, "decisions").
public enum TaskKind: String, CaseIterable, Sendable {
    /// One class per text.
    case classification
    /// One number per text.
    case regression
    /// Any number of labels per text, also none.
    case multilabel
    /// Labelled spans of the text, by a tag per word.
    case tokens
    /// One class of each named head.
    case heads

    /// True if a text has several decisions.
    var hasSeveralDecisions: Bool { self != .classification && self != .regression }

    /// The first schema version of bundles whose readers know the kind.
    var schemaVersion: Int { hasSeveralDecisions ? 3 : 1 }

    /// Smallest and largest number of labels of a model.
    private var labelCounts: ClosedRange<Int> {
        switch self {
        case .classification, .heads: return 2...Int.max
        case .regression: return 0...0
        case .multilabel: return 1...62
        case .tokens: return 3...Int.max
        }
    }

    /// Throws if a model of this kind cannot have so many labels, and for a repeated label. `place`: for messages.
    func check(_ labels: [String], at place: String) throws {
        let (least, most) = (labelCounts.lowerBound, labelCounts.upperBound)
        guard labelCounts.contains(labels.count) else {
            let needed = most == 0 ? "none" : most == Int.max ? "at least \(least)" : "\(least) to \(most)"
            throw EarlyExitError.failure(
                "\(place): labels has \(labels.count) entries: a \(rawValue) model must have \(needed)."
                    + " Export the bundle again")
        }
        var known: Set<String> = []
        if let twice = labels.first(where: { !known.insert($0).inserted }) {
            throw EarlyExitError.failure("\(place): labels contains '\(twice)' twice. Export the bundle again")
        }
    }
}

extension ModelInfo {
    /// Number of classes of a decision; 1 for a value.
    var classes: Int {
        switch kind {
        case .classification, .tokens: return labels.count
        case .regression: return 1
        case .multilabel: return 2
        case .heads: return heads.map(\.classes.count).max() ?? 0
        }
    }

    /// Number of logits of an exit: of each token, for tokens.
    var outputs: Int { max(labels.count, 1) }

    /// Logits of the decisions of a text, from those of an exit. `words`: the words of the text, for tokens.
    /// `requested`: the heads that decide. Throws if there are too few or too many logits.
    func decisions(_ logits: [Float], words: Words?, requested: [NamedHead], layer: Int) throws -> [[Float]] {
        let size = outputs
        let needed = kind == .tokens ? size * ((words?.tokens.last ?? -1) + 1) : size
        guard kind == .tokens ? logits.count >= needed : logits.count == needed else {
            throw EarlyExitError.failure(
                "layer \(layer) gave \(logits.count) logits, which do not match the labels. Export the bundle again")
        }
        switch kind {
        case .classification, .regression: return [logits]
        case .multilabel: return logits.map { [0, $0] }
        case .tokens:
            guard let tokens = words?.tokens, !tokens.isEmpty else { return [ModelInfo.certain(size)] }
            return tokens.map { Array(logits[$0 * size..<($0 + 1) * size]) }
        case .heads: return requested.map { Array(logits[$0.labels]) }
        }
    }

    /// Logits of the decision of a text without words, whose certainty is the highest.
    private static func certain(_ classes: Int) -> [Float] {
        [0] + [Float](repeating: -30_000, count: classes - 1)
    }

    /// The prediction for a text. `decisions`: logits of each decision, divided by the temperature. The logits decide,
    /// because different logits can have equal probabilities. `requested`: the heads of the decisions.
    func describe(_ decisions: [[Float]], words: Words?, requested: [NamedHead]) -> Described {
        let numbers = decisions.map(largest)
        switch kind {
        case .classification:
            return Described(label: labels[numbers[0]], scores: named(labels, softmax(decisions[0])))
        case .regression:
            return Described(value: decisions[0][0])
        case .multilabel:
            let found = zip(labels, numbers).filter { $1 == 1 }.map(\.0)
            let scores = named(labels, decisions.map { softmax($0)[1] })
            return Described(label: found.joined(separator: "|"), scores: scores, labels: found)
        case .tokens:
            guard let words, !words.tokens.isEmpty else { return Described(label: "", spans: []) }
            let tags = numbers.map { labels[$0] }
            let spans = words.spans(tags, scores: zip(decisions, numbers).map { softmax($0)[$1] })
            return Described(label: tags.joined(separator: " "), spans: spans)
        case .heads:
            var found = Described(heads: [:])
            var chosen: [String] = []
            for (head, (logits, number)) in zip(requested, zip(decisions, numbers)) {
                let scores = softmax(logits)
                chosen.append(labels[head.labels.lowerBound + number])
                found.scores.merge(named(labels[head.labels], scores)) { first, _ in first }
                found.heads?[head.name] = HeadPrediction(label: head.classes[number], scores: named(head.classes, scores))
            }
            found.label = chosen.joined(separator: "|")
            return found
        }
    }

    private func named(_ names: some Sequence<String>, _ scores: [Float]) -> [String: Float] {
        Dictionary(zip(names, scores)) { first, _ in first }
    }
}

/// A prediction in the terms of the user; the fields of `Prediction`.
struct Described {
    var label: String?
    var value: Float?
    var scores: [String: Float] = [:]
    var labels: [String]?
    var spans: [Span]?
    var heads: [String: HeadPrediction]?
}
