import Foundation
import XCTest

@testable import EarlyExit

/// Bundles and manifests that are accepted and rejected.
final class BundleTests: XCTestCase {
    func testDamagedBundleIsRejected() throws {
        let folder = try bundleFolder("confidence")
        try Data("{}".utf8).write(to: folder.appendingPathComponent("tokenizer.json"))
        assertFails(try ModelBundle(at: folder), "tokenizer.json: checksum differs")
        XCTAssertNoThrow(try ModelBundle(at: folder, verify: false))
        try FileManager.default.removeItem(at: folder.appendingPathComponent("tokenizer.json"))
        assertFails(try ModelBundle(at: folder, verify: false), "'tokenizer.json' is missing")
    }

    func testMissingBundleGetsTheInstructionForXcode() throws {
        let folder = try temporaryFolder().appendingPathComponent("bundle")
        assertFails(try ModelBundle(at: folder), "turn off \"Build Folder Contents\"")
    }

    func testPackageIsComparedWithItsChecksumWhenItIsCompiled() throws {
        let folder = try bundleFolder("confidence")
        try Data("other".utf8).write(to: folder.appendingPathComponent("segments/layer_02.mlpackage/model"))
        let bundle = try ModelBundle(at: folder)
        XCTAssertNoThrow(try bundle.checkPackage(bundle.manifest.segments[1]))
        assertFails(try bundle.checkPackage(bundle.manifest.segments[2]), "layer_02.mlpackage: checksum differs")
    }

    func testFinderMetadataDoesNotChangeAChecksum() throws {
        let bundle = try ModelBundle(at: bundleFolder("confidence"))
        let package = bundle.folder.appendingPathComponent("segments/layer_02.mlpackage")
        let inside = package.appendingPathComponent("Data")
        try FileManager.default.createDirectory(at: inside, withIntermediateDirectories: true)
        for place in [package, inside] {
            for name in [".DS_Store", "._model"] { try Data("Mac".utf8).write(to: place.appendingPathComponent(name)) }
        }
        XCTAssertNoThrow(try bundle.checkPackage(bundle.manifest.segments[2]))
        try Data("Mac".utf8).write(to: package.appendingPathComponent("more"))
        assertFails(try bundle.checkPackage(bundle.manifest.segments[2]), "checksum differs")
    }

    func testCompiledModelReplacesAPackage() throws {
        let folder = try bundleFolder("confidence")
        let package = folder.appendingPathComponent("segments/layer_02.mlpackage")
        let compiled = folder.appendingPathComponent("segments/layer_02.mlmodelc")
        try FileManager.default.moveItem(at: package, to: compiled)
        let bundle = try ModelBundle(at: folder)
        XCTAssertEqual(bundle.compiled(bundle.manifest.segments[2])?.path, compiled.path)
        XCTAssertNil(bundle.compiled(bundle.manifest.segments[3]))
        XCTAssertFalse(bundle.hasPackage(bundle.manifest.segments[2]))
        try FileManager.default.removeItem(at: compiled)
        assertFails(try ModelBundle(at: folder), "'segments/layer_02.mlpackage' is missing")
    }

    func testUnsupportedManifestIsRejected() throws {
        assertFails(try manifest { $0["schema_version"] = 4 }, "is newer than 3")
        assertFails(
            try manifest {
                var model = $0["model"] as? [String: Any] ?? [:]
                model["kind"] = "poetry"
                $0["model"] = model
            }, "model.kind is 'poetry', and this runner supports classification, regression, multilabel, tokens")
        assertFails(try manifest { $0["schema_version"] = nil }, "no schema_version")
        assertFails(try manifest { $0["colour"] = 3 }, "unknown key 'colour'")
        assertFails(try manifest { $0["target"] = nil }, "key 'target' is missing")
        assertFails(try manifest(policy: ["criterion": "luck"]), "unknown exit criterion 'luck'")
        assertFails(try manifest(policy: ["temperatures": [1, 1, 1, 1, 1, 0]]), "temperatures must be finite")
        assertFails(try manifest(segment: 3, ["repeat": 2]), "segments[3]: repeat is 2")
        for (segment, layer) in [(3, 2), (3, 7), (0, 1), (6, 5)] {
            assertFails(try manifest(segment: segment, ["layer": layer]), "do not match a model of 6 layers")
        }
    }

    func testOptionalKeysAreAccepted() throws {
        XCTAssertEqual(try manifest(segment: 3, ["repeat": 1]).exits, [1, 2, 3, 4, 5, 6])
        XCTAssertNoThrow(try manifest { $0["threads"] = 2 })
        XCTAssertNoThrow(try manifest { $0["scores"] = ["bundle": [0.5]] })
        XCTAssertNoThrow(
            try manifest {
                $0["threads"] = NSNull()
                $0["scores"] = NSNull()
            })
        assertFails(try manifest { $0["threads"] = "two" }, "threads: unexpected value")
    }

    func testExitsAreTheLastLayersOfTheSegments() throws {
        XCTAssertEqual(try ModelBundle(at: bundleFolder("fewer_exits")).manifest.exits, [2, 3, 6])
        XCTAssertEqual(try ModelBundle(at: bundleFolder("one_exit")).manifest.exits, [6])
    }

    /// Manifest of a bundle after a change.
    private func manifest(_ change: (inout [String: Any]) -> Void) throws -> Manifest {
        let data = try Data(contentsOf: Vectors.url("models/confidence/manifest.json"))
        var members = try XCTUnwrap(JSONSerialization.jsonObject(with: data) as? [String: Any])
        change(&members)
        let changed = try JSONSerialization.data(withJSONObject: members)
        return try Manifest(JSON.parse([UInt8](changed)), at: "manifest.json")
    }

    private func manifest(policy change: [String: Any]) throws -> Manifest {
        try manifest { members in
            let policy = members["policy"] as? [String: Any] ?? [:]
            members["policy"] = policy.merging(change) { $1 }
        }
    }

    private func manifest(segment: Int, _ change: [String: Any]) throws -> Manifest {
        try manifest { members in
            var segments = members["segments"] as? [[String: Any]] ?? []
            segments[segment].merge(change) { $1 }
            members["segments"] = segments
        }
    }
}
