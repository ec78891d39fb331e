import Foundation

/// JSON value that preserves all members of an object, in order.
///
/// Foundation's parsers create dictionaries with String keys. Canonically equivalent Strings are equal, so that entries
/// of a vocabulary would be lost.
enum JSON: Sendable {
    case null
    case bool(Bool)
    case int(Int)
    case double(Double)
    case string(String)
    case array([JSON])
    case object([(key: String, value: JSON)])

    /// Reads a file. Error messages name the file.
    static func read(_ file: URL) throws -> JSON {
        guard FileManager.default.fileExists(atPath: file.path) else {
            throw EarlyExitError.failure(
                "\(file.path) is missing: \(file.deletingLastPathComponent().path) is incomplete. Copy it again")
        }
        do {
            return try parse([UInt8](Data(contentsOf: file)))
        } catch let error as EarlyExitError {
            throw EarlyExitError.failure("\(file.path) is damaged (\(error.message)). Copy it again, or recreate it")
        } catch {
            throw EarlyExitError.failure("\(file.path) cannot be read (\(error.localizedDescription)). Copy it again", underlying: error)
        }
    }

    static func parse(_ bytes: [UInt8]) throws -> JSON {
        guard String(bytes: bytes, encoding: .utf8) != nil else { throw EarlyExitError.failure("not UTF-8") }
        var parser = JSONParser(bytes: bytes)
        return try parser.document()
    }

    /// Member of an object; null if there is none. Of several members with the same key, the last one.
    subscript(_ key: String) -> JSON {
        guard case .object(let members) = self, let member = members.last(where: { $0.key == key }) else { return .null }
        return member.value
    }

    var isNull: Bool {
        if case .null = self { return true }
        return false
    }

    var bool: Bool? {
        if case .bool(let value) = self { return value }
        return nil
    }

    var int: Int? {
        if case .int(let value) = self { return value }
        return nil
    }

    /// Value of any number; nil for other types.
    var double: Double? {
        switch self {
        case .int(let value): return Double(value)
        case .double(let value): return value
        default: return nil
        }
    }

    var string: String? {
        if case .string(let value) = self { return value }
        return nil
    }

    var array: [JSON]? {
        if case .array(let value) = self { return value }
        return nil
    }

    var object: [(key: String, value: JSON)]? {
        if case .object(let value) = self { return value }
        return nil
    }
}

private struct JSONParser {
    let bytes: [UInt8]
    var at = 0
    var depth = 0

    init(bytes: [UInt8]) {
        self.bytes = bytes
    }

    mutating func document() throws -> JSON {
        let found = try value()
        skipBlanks()
        guard at == bytes.count else { throw damage("more than one value") }
        return found
    }

    private mutating func value() throws -> JSON {
        skipBlanks()
        guard at < bytes.count else { throw damage("the end is missing") }
        switch bytes[at] {
        case UInt8(ascii: "{"): return .object(try members())
        case UInt8(ascii: "["): return .array(try elements())
        case UInt8(ascii: "\""): return .string(try string())
        case UInt8(ascii: "t"): return try word("true", .bool(true))
        case UInt8(ascii: "f"): return try word("false", .bool(false))
        case UInt8(ascii: "n"): return try word("null", .null)
        default: return try number()
        }
    }

    private mutating func members() throws -> [(key: String, value: JSON)] {
        try enter()
        var found: [(key: String, value: JSON)] = []
        while try !closes(with: UInt8(ascii: "}"), first: found.isEmpty) {
            guard peek() == UInt8(ascii: "\"") else { throw damage("a key is missing") }
            let key = try string()
            skipBlanks()
            guard peek() == UInt8(ascii: ":") else { throw damage("a colon is missing") }
            at += 1
            found.append((key: key, value: try value()))
        }
        return found
    }

    private mutating func elements() throws -> [JSON] {
        try enter()
        var found: [JSON] = []
        while try !closes(with: UInt8(ascii: "]"), first: found.isEmpty) {
            found.append(try value())
        }
        return found
    }

    /// Skips an opening bracket. Throws for deep nesting, which would overflow the stack.
    private mutating func enter() throws {
        at += 1
        depth += 1
        guard depth <= 64 else { throw damage("nested too deeply") }
    }

    /// Skips a comma, or a closing bracket; returns true for the bracket.
    private mutating func closes(with bracket: UInt8, first: Bool) throws -> Bool {
        skipBlanks()
        if peek() == bracket {
            at += 1
            depth -= 1
            return true
        }
        if !first {
            guard peek() == UInt8(ascii: ",") else { throw damage("a comma is missing") }
            at += 1
            skipBlanks()
        }
        return false
    }

    private mutating func string() throws -> String {
        at += 1
        var text: [UInt8] = []
        while at < bytes.count {
            let byte = bytes[at]
            at += 1
            if byte == UInt8(ascii: "\"") { return String(decoding: text, as: UTF8.self) }
            if byte == UInt8(ascii: "\\") {
                text.append(contentsOf: try escape())
            } else {
                text.append(byte)
            }
        }
        throw damage("a string is not terminated")
    }

    /// UTF-8 bytes of an escape sequence; the backslash is already read.
    private mutating func escape() throws -> [UInt8] {
        guard at < bytes.count else { throw damage("a string is not terminated") }
        let byte = bytes[at]
        at += 1
        switch byte {
        case UInt8(ascii: "n"): return [10]
        case UInt8(ascii: "t"): return [9]
        case UInt8(ascii: "r"): return [13]
        case UInt8(ascii: "b"): return [8]
        case UInt8(ascii: "f"): return [12]
        case UInt8(ascii: "u"): return Array(String(Character(try escapedScalar())).utf8)
        case UInt8(ascii: "\""), UInt8(ascii: "\\"), UInt8(ascii: "/"): return [byte]
        default: throw damage("an unknown escape")
        }
    }

    private mutating func escapedScalar() throws -> Unicode.Scalar {
        let high = try hexadecimal()
        if let scalar = Unicode.Scalar(high) { return scalar }
        guard high < 0xDC00, peek() == UInt8(ascii: "\\"), at + 1 < bytes.count, bytes[at + 1] == UInt8(ascii: "u")
        else { throw damage("a lone surrogate") }
        at += 2
        let low = try hexadecimal()
        guard (0xDC00...0xDFFF).contains(low),
            let scalar = Unicode.Scalar(0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00))
        else { throw damage("a lone surrogate") }
        return scalar
    }

    private mutating func hexadecimal() throws -> UInt32 {
        guard at + 4 <= bytes.count, let value = UInt32(String(decoding: bytes[at..<at + 4], as: UTF8.self), radix: 16)
        else { throw damage("an unknown escape") }
        at += 4
        return value
    }

    private mutating func number() throws -> JSON {
        let start = at
        while at < bytes.count, "+-.0123456789eE".utf8.contains(bytes[at]) { at += 1 }
        let text = String(decoding: bytes[start..<at], as: UTF8.self)
        if let value = Int(text) { return .int(value) }
        if let value = Double(text), value.isFinite { return .double(value) }
        throw damage("no JSON value")
    }

    private mutating func word(_ text: String, _ value: JSON) throws -> JSON {
        guard bytes[at...].starts(with: text.utf8) else { throw damage("no JSON value") }
        at += text.utf8.count
        return value
    }

    private func peek() -> UInt8? {
        at < bytes.count ? bytes[at] : nil
    }

    private mutating func skipBlanks() {
        while at < bytes.count, [9, 10, 13, 32].contains(bytes[at]) { at += 1 }
    }

    private func damage(_ what: String) -> EarlyExitError {
        .failure("\(what) at byte \(at)")
    }
}
