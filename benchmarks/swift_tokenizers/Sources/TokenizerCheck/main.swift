import EarlyExit
import Foundation

// TokenizerCheck compare JOBS      JOBS has lines TOKENIZER, MAX_LENGTH, CASES, separated by tabs. Prints each difference
//                                  as a line of JSON, then the number of cases and the seconds
// TokenizerCheck describe FILE     prints a line for each character of the file: the version of Unicode that assigned it
//                                  (major, minor; "- -" if Swift's tables do not contain it), and its general category
// TokenizerCheck read TOKENIZER    prints the milliseconds of five reads

/// Texts with the token ids of the Python runtime, little-endian. For each case: number of texts (1 byte), each text
/// (number of bytes, UTF-8), number of tokens, ids, types, truncated (1 byte). Numbers have 4 bytes.
struct CaseReader {
    let bytes: [UInt8]
    var at = 0

    struct Case {
        let texts: [String]
        let ids, types: [Int32]
        let truncated: Bool
    }

    mutating func next() -> Case? {
        guard at < bytes.count else { return nil }
        let texts = (0..<byte()).map { _ in text() }
        let count = number()
        return Case(
            texts: texts, ids: (0..<count).map { _ in number() }, types: (0..<count).map { _ in number() },
            truncated: byte() == 1)
    }

    private mutating func byte() -> UInt8 {
        defer { at += 1 }
        return bytes[at]
    }

    private mutating func number() -> Int32 {
        defer { at += 4 }
        return bytes[at..<at + 4].reversed().reduce(0) { $0 << 8 | Int32(bitPattern: UInt32($1)) }
    }

    private mutating func text() -> String {
        let size = Int(number())
        defer { at += size }
        return String(decoding: bytes[at..<at + size], as: UTF8.self)
    }
}

struct Difference: Encodable {
    let job, number: Int
    let ids: [Int32]
}

func compare(_ jobs: String) throws {
    let encoder = JSONEncoder()
    var (count, seconds) = (0, 0.0)
    for (job, line) in try String(contentsOfFile: jobs, encoding: .utf8).split(separator: "\n").enumerated() {
        let parts = line.split(separator: "\t").map(String.init)
        let tokenizer = try Tokenizer(file: URL(fileURLWithPath: parts[0]), maxLength: Int(parts[1]) ?? 0)
        var reader = CaseReader(bytes: [UInt8](try Data(contentsOf: URL(fileURLWithPath: parts[2]))))
        var number = 0
        while let expected = reader.next() {
            let begin = DispatchTime.now().uptimeNanoseconds
            let found = tokenizer.encode(expected.texts[0], expected.texts.count == 2 ? expected.texts[1] : nil)
            seconds += Double(DispatchTime.now().uptimeNanoseconds - begin) / 1e9
            if (found.inputIds, found.tokenTypeIds) != (expected.ids, expected.types)
                || found.truncated != expected.truncated
            {
                let difference = Difference(job: job, number: number, ids: found.inputIds)
                print(String(decoding: try encoder.encode(difference), as: UTF8.self))
            }
            number += 1
        }
        count += number
    }
    print("{\"cases\": \(count), \"seconds\": \(seconds)}")
}

func describe(_ file: String) throws {
    for scalar in try String(contentsOfFile: file, encoding: .utf8).unicodeScalars {
        let age = scalar.properties.age.map { "\($0.major) \($0.minor)" } ?? "- -"
        print(age, scalar.properties.generalCategory)
    }
}

func read(_ file: String) throws {
    for _ in 0..<5 {
        let begin = DispatchTime.now().uptimeNanoseconds
        _ = try Tokenizer(file: URL(fileURLWithPath: file), maxLength: 128)
        print(Double(DispatchTime.now().uptimeNanoseconds - begin) / 1e6)
    }
}

let arguments = CommandLine.arguments
switch arguments.count > 1 ? arguments[1] : "" {
case "compare" where arguments.count == 3:
    try compare(arguments[2])
case "describe" where arguments.count == 3:
    try describe(arguments[2])
case "read" where arguments.count == 3:
    try read(arguments[2])
default:
    print("usage: TokenizerCheck compare JOBS | describe FILE | read TOKENIZER")
    exit(2)
}
