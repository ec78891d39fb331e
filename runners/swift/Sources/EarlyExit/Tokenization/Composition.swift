import Foundation

/// Canonical order and canonical composition, as defined by the Unicode Standard (section 3.11).
///
/// Only the decomposition of characters is Foundation's. On Linux, its functions do not sort all marks, and compose a mark
/// with the lower 16 bits of a character beyond U+FFFF: U+20072 and U+0301 become U+0155.
enum Composition {
    private struct Pair: Hashable {
        let first, second: Unicode.Scalar
    }

    /// The two characters that each composed character stands for; without Hangul, which is computed. Created at the first
    /// use, which takes some milliseconds.
    private static let composed: [Pair: Unicode.Scalar] = {
        var wholes: [[Unicode.Scalar]: Unicode.Scalar] = [:]
        for range in [0xC0...0x33FF, 0xA000...0xABFF, 0x10000...0x1FFFF] as [ClosedRange<UInt32>] {
            let candidates = range.compactMap(Unicode.Scalar.init).filter { !$0.properties.isFullCompositionExclusion }
            var text = String.UnicodeScalarView()
            for candidate in candidates { text += [candidate, "\n"] }
            let parts = String(text).decomposedStringWithCanonicalMapping.unicodeScalars.split(separator: "\n")
            for (whole, part) in zip(candidates, parts) where part.count > 1 { wholes[Array(part)] = whole }
        }
        var found: [Pair: Unicode.Scalar] = [:]
        for (parts, whole) in wholes {
            let first = parts.count == 2 ? parts[0] : wholes[Array(parts.dropLast())]
            if let first, let second = parts.last { found[Pair(first: first, second: second)] = whole }
        }
        return found
    }()
    /// No composition has a second character before this one.
    private static let firstMark: Unicode.Scalar = "\u{300}"

    /// Decomposed text with its marks in canonical order. The order of marks of the same class is kept.
    static func sorted(_ text: [Unicode.Scalar]) -> [Unicode.Scalar] {
        var found = text
        let classes = text.map(\.properties.canonicalCombiningClass.rawValue)
        for run in text.indices.split(whereSeparator: { classes[$0] == 0 }) where run.count > 1 {
            let order = run.sorted { (classes[$0], $0) < (classes[$1], $1) }
            for (place, source) in zip(run, order) { found[place] = text[source] }
        }
        return found
    }

    /// Composes decomposed and sorted text.
    static func composed(_ text: [Unicode.Scalar]) -> [Unicode.Scalar] {
        var found: [Unicode.Scalar] = []
        var starter: Int?
        var lastClass: UInt8 = 0
        for scalar in text {
            let ownClass = scalar.properties.canonicalCombiningClass.rawValue
            if let starter, starter == found.count - 1 || lastClass < ownClass,
                let whole = whole(found[starter], scalar)
            {
                found[starter] = whole
                continue
            }
            if ownClass == 0 { starter = found.count }
            lastClass = ownClass
            found.append(scalar)
        }
        return found
    }

    private static func whole(_ first: Unicode.Scalar, _ second: Unicode.Scalar) -> Unicode.Scalar? {
        if second < firstMark { return nil }
        if let syllable = Hangul.syllable(first.value, second.value) { return Unicode.Scalar(syllable) }
        return composed[Pair(first: first, second: second)]
    }

    /// Korean syllables, which are composed by arithmetic: a leading consonant, a vowel, and possibly a final consonant.
    private enum Hangul {
        static let syllables: UInt32 = 0xAC00
        static let leading: UInt32 = 0x1100, leadingCount: UInt32 = 19
        static let vowels: UInt32 = 0x1161, vowelCount: UInt32 = 21
        static let beforeFinals: UInt32 = 0x11A7, finalCount: UInt32 = 28

        static func syllable(_ first: UInt32, _ second: UInt32) -> UInt32? {
            if (leading..<leading + leadingCount).contains(first), (vowels..<vowels + vowelCount).contains(second) {
                return syllables + ((first - leading) * vowelCount + second - vowels) * finalCount
            }
            let withoutFinal =
                (syllables..<syllables + leadingCount * vowelCount * finalCount).contains(first)
                && (first - syllables) % finalCount == 0
            guard withoutFinal, second > beforeFinals, second < beforeFinals + finalCount else { return nil }
            return first + second - beforeFinals
        }
    }
}
