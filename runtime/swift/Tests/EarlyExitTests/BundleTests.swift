import Foundation
import XCTest

@testable import EarlyExit

/// What a bundle's reader takes and refuses.
final class BundleTests: XCTestCase {
    func testADamagedBundleIsRefused() throws {
        let folder = try bundleFolder("confidence")
        try Data("other".utf8).write(to: folder.appendingPathComponent("segments/layer_02.mlpackage/model"))
        assertFails(try ModelBundle(at: folder), "checksum differs")
        XCTAssertNoThrow(try ModelBundle(at: folder, verify: false))
        try FileManager.default.removeItem(at: folder.appendingPathComponent("tokenizer.json"))
        assertFails(try ModelBundle(at: folder, verify: false), "'tokenizer.json' is missing")
    }

    func testAManifestThatItCannotRunIsRefused() throws {
        for (old, new, told) in [
            ("\"schema_version\": 1", "\"schema_version\": 2", "is newer than 1"),
            ("\"schema_version\": 1", "\"schema_version\": 1, \"colour\": 3", "unknown key 'colour'"),
            ("\"criterion\": \"confidence\"", "\"criterion\": \"luck\"", "luck"),
            ("\"layer\": 3,", "\"layer\": 3, \"repeat\": 2,", "segments[3]: repeat is 2"),
            ("\"layer\": 3,", "\"layer\": 2,", "do not fit a model of 6 layers"),
            ("\"layer\": 3,", "\"layer\": 7,", "do not fit a model of 6 layers"),
            ("\"layer\": 0,", "\"layer\": 1,", "do not fit a model of 6 layers"),
            ("\"layers\": 6", "\"layers\": 7", "do not fit a model of 7 layers"),
        ] {
            assertFails(try manifest { $0.replacing(old, by: new) }, told)
        }
    }

    func testWhatANewerExportMayAddIsTaken() throws {
        let manifest = try manifest { text in
            text.replacing("\"threads\": null,", by: "").replacing("\"scores\": null,", by: "")
                .replacing("\"repeat\": 1,", by: "")
                .replacing(
                    "\"schema_version\": 1,", by: "\"schema_version\": 1, \"threads\": 2, \"scores\": {\"bundle\": [0.5]},")
                .replacing("\"layer\": 3,", by: "\"layer\": 3, \"repeat\": 1,")
        }
        XCTAssertEqual(manifest.exits, [1, 2, 3, 4, 5, 6])
        XCTAssertNoThrow(
            try self.manifest { text in
                text.replacing("\"threads\": null,", by: "").replacing("\"scores\": null,", by: "")
                    .replacing("\"schema_version\": 1,", by: "\"schema_version\": 1, \"threads\": null, \"scores\": null,")
            })
    }

    func testExitsAreWhereTheSegmentsEnd() throws {
        XCTAssertEqual(try ModelBundle(at: bundleFolder("fewer_exits")).manifest.exits, [2, 3, 6])
        XCTAssertEqual(try ModelBundle(at: bundleFolder("one_exit")).manifest.exits, [6])
    }

    private func manifest(_ change: (String) -> String) throws -> Manifest {
        let text = try String(contentsOf: Vectors.url("models/confidence/manifest.json"), encoding: .utf8)
        let changed = change(text)
        XCTAssertNotEqual(changed, text)
        return try Manifest(JSON.parse(Array(changed.utf8)), at: "manifest.json")
    }
}

extension String {
    fileprivate func replacing(_ old: String, by new: String) -> String {
        replacingOccurrences(of: old, with: new)
    }
}
