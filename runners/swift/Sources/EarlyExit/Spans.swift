/// A labelled span of a text.
public struct Span: Equatable, Sendable {
    /// Its place in the text: `text[span.range]`.
    public let range: Range<String.Index>
    public let label: String
    /// Smallest probability of the tags of its words.
    public let score: Float
}

/// The words of a tokenized text.
struct Words: Equatable, Sendable {
    /// Position of the first token of each word in the row.
    var tokens: [Int] = []
    /// Place of each word, as numbers of characters (Unicode scalars) of the text without surrounding whitespace.
    var places: [Range<Int>] = []
    /// The same in the text as given.
    var ranges: [Range<String.Index>] = []

    /// The words of a text: docs/bundle.md, "decisions". `tokens`: places of its tokens, of which the first is at
    /// `position` in the row. `stripped`: the text without surrounding whitespace, a part of `text`.
    init(_ text: String, stripped: Substring.UnicodeScalarView, tokens places: [Range<Int>], position: Int) {
        let scalars = Array(stripped)
        for (number, place) in places.enumerated() {
            // Some tokenizers include the blank before a word.
            let start = place.first { !Tokenizer.isBlank(scalars[$0]) } ?? place.upperBound
            guard start < place.upperBound else { continue }
            if let last = self.places.last,
                start < last.upperBound
                    || (start == last.upperBound && scalars[start - 1].joins && scalars[start].joins)
            {
                self.places[self.places.count - 1] = last.lowerBound..<max(last.upperBound, place.upperBound)
            } else {
                tokens.append(position + number)
                self.places.append(start..<place.upperBound)
            }
        }
        let indices = Array(stripped.indices) + [stripped.endIndex]
        ranges = self.places.map { indices[$0.lowerBound]..<indices[$0.upperBound] }
    }

    /// The spans of IOB2 tags, one per word. An I that continues no span of its label begins one. `scores`: of each tag.
    func spans(_ tags: [String], scores: [Float]) -> [Span] {
        var spans: [Span] = []
        var open: Substring?
        for (word, tag) in tags.enumerated() {
            let label = tag == "O" ? nil : tag.dropFirst(2)
            if let label, let last = spans.last, label == open, tag.hasPrefix("I-") {
                let range = last.range.lowerBound..<ranges[word].upperBound
                spans[spans.count - 1] = Span(range: range, label: last.label, score: min(last.score, scores[word]))
            } else if let label {
                spans.append(Span(range: ranges[word], label: String(label), score: scores[word]))
            }
            open = label
        }
        return spans
    }
}

extension Unicode.Scalar {
    /// True for a letter, mark or digit of a script that separates words by blanks.
    fileprivate var joins: Bool {
        switch value {
        case 0xE00...0xEFF, 0x1000...0x109F, 0x1780...0x17FF, 0x3040...0x30FF, 0x3400...0x4DBF, 0x4E00...0x9FFF,
            0xF900...0xFAFF, 0x20000...0x3FFFF:
            return false
        default:
            return isMark || kind == .letter || kind == .number
        }
    }
}
