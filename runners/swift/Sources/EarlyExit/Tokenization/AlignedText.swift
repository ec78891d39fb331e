/// A text in a state of tokenization.
///
/// If it is aligned, each of its characters has a place in the source, as in the tokenizers library: that of the character
/// that it replaces.
struct AlignedText: Sendable {
    let scalars: ArraySlice<Unicode.Scalar>
    /// Places of the characters in the source, with the same indices; empty if the text is not aligned.
    private let places: ArraySlice<Range<Int>>

    /// Largest number of characters that a step may combine. Longer runs are aligned in parts.
    private static let longest = 32

    init(_ scalars: [Unicode.Scalar], aligned: Bool) {
        self.scalars = scalars[...]
        places = aligned ? scalars.indices.map { $0..<$0 + 1 }[...] : []
    }

    private init(_ scalars: [Unicode.Scalar], places: [Range<Int>]) {
        self.scalars = scalars[...]
        self.places = places[...]
    }

    private init(part scalars: ArraySlice<Unicode.Scalar>, places: ArraySlice<Range<Int>>) {
        self.scalars = scalars
        self.places = places
    }

    var isEmpty: Bool { scalars.isEmpty }

    /// Place of the whole text in the source; empty if the text is not aligned.
    var place: Range<Int> {
        guard let first = places.first, let last = places.last else { return 0..<0 }
        return first.lowerBound..<max(first.lowerBound, last.upperBound)
    }

    /// The part with these indices of `scalars`.
    subscript(range: Range<Int>) -> AlignedText {
        AlignedText(part: scalars[range], places: places.isEmpty ? [] : places[range])
    }

    /// The text with a character in front, which has the place of the first one.
    func prepended(_ scalar: Unicode.Scalar) -> AlignedText {
        AlignedText([scalar] + Array(scalars), places: Array(places.prefix(1)) + Array(places))
    }

    /// The text with each character mapped to one character.
    func mapped(_ transform: (Unicode.Scalar) -> Unicode.Scalar) -> AlignedText {
        AlignedText(scalars.map(transform), places: Array(places))
    }

    /// The text without whitespace at its ends.
    func stripped(left: Bool, right: Bool) -> AlignedText {
        guard let last = scalars.lastIndex(where: { !$0.properties.isWhitespace }) else {
            return left || right ? self[scalars.startIndex..<scalars.startIndex] : self
        }
        let first = scalars.firstIndex { !$0.properties.isWhitespace } ?? scalars.startIndex
        return self[(left ? first : scalars.startIndex)..<(right ? last + 1 : scalars.endIndex)]
    }

    /// Replaces each match. `match` returns the end of the match that starts at an index; nil without one. The content
    /// has the place of the last character that it replaces.
    func replaced(_ match: (Int) -> Int?, by content: [Unicode.Scalar]) -> AlignedText {
        var found: [Unicode.Scalar] = []
        var foundPlaces: [Range<Int>] = []
        var at = scalars.startIndex
        while at < scalars.endIndex {
            let end = match(at)
            found += end == nil ? [scalars[at]] : content
            if !places.isEmpty {
                foundPlaces += [Range<Int>](repeating: places[(end ?? at + 1) - 1], count: end == nil ? 1 : content.count)
            }
            at = end ?? at + 1
        }
        return AlignedText(found, places: foundPlaces)
    }

    /// Applies a step. To align the result, the text is divided into the smallest parts that the step changes
    /// independently. Each character of a changed part has the place of the character at the same position, or of the
    /// last one.
    func changed(_ step: ([Unicode.Scalar]) -> [Unicode.Scalar]) -> AlignedText {
        let source = Array(scalars)
        let whole = step(source)
        guard !places.isEmpty else { return AlignedText(whole, aligned: false) }
        guard whole != source else { return self }
        var found: [Range<Int>] = []
        var start = scalars.startIndex
        var part: [Unicode.Scalar] = []
        var result: [Unicode.Scalar] = []
        func close() {
            for place in result.indices where !part.isEmpty { found.append(places[start + min(place, part.count - 1)]) }
            start += part.count
        }
        for scalar in source {
            let alone = step([scalar])
            if !part.isEmpty, part.count < AlignedText.longest {
                let together = step(part + [scalar])
                if together != result + alone {
                    part.append(scalar)
                    result = together
                    continue
                }
            }
            close()
            part = [scalar]
            result = alone
        }
        close()
        // The lengths differ only after a part of `longest` characters.
        let missing = max(0, whole.count - found.count)
        found = found.prefix(whole.count) + [Range<Int>](repeating: found.last ?? place, count: missing)
        return AlignedText(whole, places: found)
    }
}
