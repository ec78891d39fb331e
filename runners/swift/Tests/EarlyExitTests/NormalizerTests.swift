import XCTest

@testable import EarlyExit

/// Unicode normalization forms.
final class NormalizerTests: XCTestCase {
    func testCompatibilityCharactersAreComposed() throws {
        XCTAssertEqual(try normalized("NFKC", [0xFF8A, 0xFF9F]), [0x30D1])
        XCTAssertEqual(try normalized("NFKD", [0xFF8A, 0xFF9F]), [0x30CF, 0x309A])
        XCTAssertEqual(try normalized("NFC", [0x65, 0x301]), [0xE9])
    }

    func testMarksAreSortedAroundACharacterThatDecomposesToMarks() throws {
        XCTAssertEqual(try normalized("NFD", [0x35C, 0xA8ED, 0x0F81]), [0x0F71, 0x0F80, 0xA8ED, 0x35C])
    }

    func testAMarkIsNotComposedWithTheLowerBitsOfACharacter() throws {
        XCTAssertEqual(try normalized("NFC", [0x65, 0x301, 0x20072, 0x301]), [0xE9, 0x20072, 0x301])
        XCTAssertEqual(try normalized("NFKC", [0xE00A8, 0x301]), [0xE00A8, 0x301])
    }

    func testCompositionFollowsTheUnicodeStandard() throws {
        // Two marks; a mark that is blocked by one of its class; a mark behind one of another class.
        XCTAssertEqual(try normalized("NFC", [0x1E61, 0x323]), [0x1E69])
        XCTAssertEqual(try normalized("NFC", [0x61, 0x305, 0x301]), [0x61, 0x305, 0x301])
        XCTAssertEqual(try normalized("NFC", [0x61, 0x328, 0x301]), [0x105, 0x301])
        XCTAssertEqual(try normalized("NFC", [0x61, 0x31B, 0x301]), [0xE1, 0x31B])
        // Korean; a final consonant without a syllable; beyond U+FFFF; characters that are never composed.
        XCTAssertEqual(try normalized("NFC", [0x1112, 0x1161, 0x11AB, 0x11AB]), [0xD55C, 0x11AB])
        XCTAssertEqual(try normalized("NFC", [0x11099, 0x110BA]), [0x1109A])
        XCTAssertEqual(try normalized("NFC", [0x958, 0x2126, 0x1D15E]), [0x915, 0x93C, 0x3A9, 0x1D157, 0x1D165])
    }

    private func normalized(_ form: String, _ scalars: [UInt32]) throws -> [UInt32] {
        let normalizer = try Normalizer(.object([(key: "type", value: .string(form))]))
        return normalizer.apply(scalars.compactMap(Unicode.Scalar.init)).map(\.value)
    }
}
