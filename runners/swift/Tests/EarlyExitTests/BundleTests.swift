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

    func testManifestsThatEveryRunnerRejectsAreRejected() throws {
        let cases = try (Vectors.json("errors.json").array ?? []).filter { $0["at"].array != nil }
        XCTAssertGreaterThan(cases.count, 50)
        for each in cases {
            let place = try XCTUnwrap(each["at"].array)
            guard each["target"].isNull else { continue }  // cases of another target
            let name = try XCTUnwrap(each["model"].string)
            let json = try Vectors.json("models/\(name)/manifest.json").replacing(place[...], with: each["value"])
            for word in each["names"].array?.compactMap(\.string) ?? [] {
                assertFails(try Manifest(json, at: "manifest.json"), word)
            }
        }
    }

    func testLabelsThatDoNotFitTheModelAreRejected() throws {
        let none = "labels has 0 entries: a"
        assertFails(try manifest("classification", labels: []), "\(none) classification model must have at least 2")
        assertFails(try manifest("multilabel", labels: []), "\(none) multilabel model must have 1 to 62")
        assertFails(try manifest("tokens", labels: ["O", "B-a"]), "a tokens model must have at least 3")
        assertFails(try manifest("heads", labels: []), "\(none) heads model must have at least 2")
        assertFails(try manifest("regression", labels: ["a"]), "a regression model must have none")
        assertFails(try manifest("classification", labels: ["a", "b", "a"]), "labels contains 'a' twice")
        let heads = ["a=1", "a=2", "b=1", "b=2", "b=3"]
        assertFails(try manifest("heads", labels: heads), "label_column has 1 columns for 2 heads")
        XCTAssertNoThrow(try manifest("heads", labels: heads, columns: "a|b"))
    }

    func testLogitsThatDoNotMatchTheLabelsAreRejected() throws {
        let tokens = try Vectors.json("models/tokens/manifest.json")
        for labels in [["O", "B-a", "I-a"], ["O", "B-a", "I-a", "B-b", "I-b", "B-c"]] {
            let place = [JSON.string("model"), .string("labels")]
            let changed = tokens.replacing(place[...], with: .array(labels.map(JSON.string)))
            assertFails(
                try Manifest(changed, at: "manifest.json"),
                "segment of layer 1: 'logits' of role logits has shape (1, length, 5), expected (1, length, \(labels.count))")
        }
        let regression = try Vectors.json("models/regression_lte/manifest.json")
        let shape = [JSON.string("segments"), .int(2), .string("outputs"), .int(1), .string("shape")]
        for sizes in [[JSON.int(1), .int(2)], [.int(1), .string("length")], [.int(1)]] {
            let changed = regression.replacing(shape[...], with: .array(sizes))
            assertFails(try Manifest(changed, at: "manifest.json"), "segment of layer 2: 'logits' of role logits has shape (1")
        }
    }

    func testTensorsThatDifferFromThoseOfTheEmbeddingsAreRejected() throws {
        let manifest = try Vectors.json("models/confidence/manifest.json")
        let place = [JSON.string("segments"), .int(3), .string("inputs"), .int(0), .string("dtype")]
        assertFails(
            try Manifest(manifest.replacing(place[...], with: .string("float32")), at: "manifest.json"),
            "segment of layer 3: 'hidden_in' is float32 (1, length, 8), but the embeddings segment writes hidden as float16")
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

    /// Manifest of a bundle with other labels.
    private func manifest(_ kind: String, labels: [String], columns: String = "label") throws -> Manifest {
        try manifest { members in
            let model = members["model"] as? [String: Any] ?? [:]
            members["schema_version"] = Manifest.schemaVersion
            members["model"] = model.merging(["kind": kind, "labels": labels, "label_column": columns]) { $1 }
            var segments = members["segments"] as? [[String: Any]] ?? []
            for number in segments.indices.dropFirst() {
                segments[number]["outputs"] = (segments[number]["outputs"] as? [[String: Any]] ?? []).map { output in
                    output["role"] as? String == "logits" ? output.merging(["shape": [1, labels.count]]) { $1 } : output
                }
            }
            members["segments"] = segments
        }
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

extension JSON {
    /// The value with another one at `place`, a path of keys and numbers.
    fileprivate func replacing(_ place: ArraySlice<JSON>, with value: JSON) -> JSON {
        guard let step = place.first else { return value }
        let rest = place.dropFirst()
        if let number = step.int, var items = array {
            items[number] = items[number].replacing(rest, with: value)
            return .array(items)
        }
        let key = step.string ?? ""
        let others = (object ?? []).filter { $0.key != key }
        return .object(others + [(key, self[key].replacing(rest, with: value))])
    }
}
