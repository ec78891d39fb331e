import Foundation

/// Precompiled character map of SentencePiece: a double-array trie that maps spellings to their replacement.
struct PrecompiledMap: Sendable {
    private let trie: [UInt32]
    private let texts: [UInt8]

    /// Parses the map: the size of the trie in bytes, the trie, the zero-terminated replacements; little-endian.
    init(base64: String) throws {
        guard let data = Data(base64Encoded: base64), data.count >= 4 else { throw PrecompiledMap.damage }
        let bytes = [UInt8](data)
        let units = stride(from: 0, to: bytes.count - 3, by: 4).map { start in
            bytes[start..<start + 4].reversed().reduce(UInt32(0)) { $0 << 8 | UInt32($1) }
        }
        let size = Int(units[0])
        guard size % 4 == 0, size >= 4, 4 + size <= bytes.count else { throw PrecompiledMap.damage }
        trie = Array(units[1..<1 + size / 4])
        texts = Array(bytes[(4 + size)...])
    }

    /// Applies the map to each grapheme if it is short and mapped as a whole, otherwise to each of its characters.
    func apply(_ text: [Unicode.Scalar]) -> [Unicode.Scalar] {
        var view = String.UnicodeScalarView()
        view.append(contentsOf: text)
        return String(view).flatMap { grapheme -> [Unicode.Scalar] in
            let bytes = Array(String(grapheme).utf8)
            if bytes.count < 6, let mapped = replacement(bytes) { return mapped }
            return grapheme.unicodeScalars.flatMap { replacement(utf8([$0])) ?? [$0] }
        }
    }

    /// Replacement of the shortest mapped prefix of the spelling, which replaces the whole spelling; nil without one.
    private func replacement(_ spelling: [UInt8]) -> [Unicode.Scalar]? {
        var at = PrecompiledMap.offset(trie[0])
        for byte in spelling {
            guard byte != 0 else { return nil }
            at ^= Int(byte)
            guard at < trie.count else { return nil }
            let unit = trie[at]
            guard unit & 0x8000_00FF == UInt32(byte) else { return nil }
            at ^= PrecompiledMap.offset(unit)
            if unit >> 8 & 1 == 1, at < trie.count {
                let start = Int(trie[at] & 0x7FFF_FFFF)
                guard start <= texts.count else { return nil }
                let mapped = texts[start...].prefix { $0 != 0 }
                return Array(String(decoding: mapped, as: UTF8.self).unicodeScalars)
            }
        }
        return nil
    }

    private static func offset(_ unit: UInt32) -> Int {
        Int((unit >> 10) << ((unit & 0x200) >> 6))
    }

    private static let damage = EarlyExitError.failure("a precompiled_charsmap that cannot be understood")
}
