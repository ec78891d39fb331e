import Foundation
import XCTest

@testable import EarlyExit

/// Added tokens, and truncation of pairs.
final class TokenizerTests: XCTestCase {
    func testAddedTokensWithArbitraryIdsAreRejected() throws {
        let normalizer = try Normalizer(Vectors.json("bert.json")["normalizer"])
        func tokens(_ contents: [String], normalized: Bool) throws -> AddedTokens {
            let tokens = contents.enumerated().map { number, content in
                JSON.object([
                    (key: "id", value: .int(7 + number)), (key: "content", value: .string(content)),
                    (key: "normalized", value: .bool(normalized)),
                ])
            }
            return try AddedTokens(.array(tokens), normalizer: normalizer)
        }
        // An empty token once made the search for it endless.
        assertFails(try tokens(["\u{301}"], normalized: true), "the added token with id 7 is empty after normalization")
        assertFails(
            try tokens(["e\u{301}", "É"], normalized: true),
            "the added tokens with ids 7 and 8 are equal after normalization")
        let pieces = try tokens(["\u{301}", "É"], normalized: false)
            .split(AlignedText(Array("a\u{301}b".unicodeScalars), aligned: false), normalizer: normalizer)
        XCTAssertEqual(pieces.count, 3)
    }

    func testAddedTokenIsFoundInTheBlanksOfThePreviousOne() throws {
        func token(_ id: Int, _ content: String, rstrip: Bool) -> JSON {
            .object([
                (key: "id", value: .int(id)), (key: "content", value: .string(content)),
                (key: "rstrip", value: .bool(rstrip)),
            ])
        }
        let tokens = try AddedTokens(
            .array([token(7, "ab", rstrip: true), token(8, " cd", rstrip: false)]), normalizer: Normalizer(.null))
        let pieces = tokens.split(
            AlignedText(Array("ab cd ab  e".unicodeScalars), aligned: false), normalizer: try Normalizer(.null))
        let found = pieces.map { piece -> String in
            switch piece {
            case .token(let id, _): return "\(id)"
            case .text(let text): return String(String.UnicodeScalarView(text.scalars))
            }
        }
        XCTAssertEqual(found, ["7", "8", " ", "7", "e"])
    }

    func testTextOfMoreCharactersCountsAsTheLongerIfOneIsTooLongToCount() throws {
        let tokenizer = try Tokenizer(file: Vectors.url("bert.json"), maxLength: 6)
        let blanks = String(repeating: " ", count: 100)
        let many = String(repeating: "the ", count: 10)
        // Three tokens fit, and the odd one goes to the longer text: by tokens up to 192 characters, then by characters.
        XCTAssertEqual(tokenizer.encode(many, "the\(blanks)the the the").tokenTypeIds, [0, 0, 0, 0, 1, 1])
        XCTAssertEqual(tokenizer.encode(many, "the\(blanks)the\(blanks)the the").tokenTypeIds, [0, 0, 0, 1, 1, 1])
    }
}
