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

    private func normalized(_ form: String, _ scalars: [UInt32]) throws -> [UInt32] {
        let normalizer = try Normalizer(.object([(key: "type", value: .string(form))]))
        return normalizer.apply(scalars.compactMap(Unicode.Scalar.init)).map(\.value)
    }
}
