import Foundation
import XCTest

@testable import EarlyExit

/// The Python runtime's answers (`PYTHONPATH=.:tests/runtime python tests/swift/make_vectors.py`): both runners must agree.
final class VectorTests: XCTestCase {
    func testTokenizersGiveTheSameIds() throws {
        struct Case: Decodable {
            let tokenizer: String
            let maxLength: Int
            let texts: [String]
            let inputIds, tokenTypeIds: [Int32]
            let truncated: Bool
        }
        for vector in try read("tokenization.json", as: [Case].self) {
            let tokenizer = try Tokenizer(file: url("\(vector.tokenizer).json"), maxLength: vector.maxLength)
            let tokens = tokenizer.encode(vector.texts[0], vector.texts.count > 1 ? vector.texts[1] : nil)
            XCTAssertEqual(tokens.inputIds, vector.inputIds, "\(vector.tokenizer): \(vector.texts)")
            XCTAssertEqual(tokens.tokenTypeIds, vector.tokenTypeIds, "\(vector.tokenizer): \(vector.texts)")
            XCTAssertEqual(tokens.truncated, vector.truncated, "\(vector.tokenizer): \(vector.texts)")
        }
    }

    func testPoliciesMeasureAndStopAlike() throws {
        struct Case: Decodable {
            let criterion: String
            let thresholds, temperatures: [Double]
            let tolerance: Double
            let logits: [[Float]]
            let lte, certainty: [Float]
            let exitLayer: Int
        }
        for vector in try read("policies.json", as: [Case].self) {
            let policy = try ExitPolicy(
                criterion: XCTUnwrap(Criterion(rawValue: vector.criterion)), thresholds: vector.thresholds,
                temperatures: vector.temperatures, tolerance: vector.tolerance)
            let outputs = zip(vector.logits, vector.lte).map { LayerOutput(logits: $0, lte: $1) }
            var memory: ExitPolicy.Memory?
            for (layer, output) in outputs.enumerated() {
                let certainty = try policy.certainty(layer: layer + 1, output: output, memory: &memory)
                XCTAssertEqual(certainty, vector.certainty[layer], accuracy: 1e-5, vector.criterion)
            }
            var loop = try ExitLoop(
                executor: Stored(outputs: outputs), tokens: Tokens(), policy: policy, rule: policy)
            var last = 0
            while let step = try loop.next() { last = step.layer }
            XCTAssertEqual(last, vector.exitLayer, vector.criterion)
        }
    }

    func testTheRunnerAnswersAlike() async throws {
        struct Expected: Decodable {
            let row: Int
            let threshold: Double?
            let stream: Int?
            let label: String
            let scores: [String: Float]
            let exitLayer: Int
            let certainty: Float
            let truncated: Bool
        }
        struct Cases: Decodable {
            let texts: [String]
            let answers: [Expected]
        }
        let cases = try read("answers.json", as: Cases.self)
        let bundle = try ModelBundle(at: url("bundle"))
        let golden = try bundle.readGolden()
        for (row, text) in cases.texts.enumerated() {
            let runner = try EarlyExitRunner(bundle: bundle, executor: Stored(golden: golden, row: row))
            var streamed: [Answer] = []
            for try await answer in try runner.stream(text) { streamed.append(answer) }
            for expected in cases.answers where expected.row == row {
                let answer = try expected.stream.map { streamed[$0] } ?? runner.predict(text, threshold: expected.threshold)
                XCTAssertEqual(answer.label, expected.label)
                XCTAssertEqual(answer.exitLayer, expected.exitLayer)
                XCTAssertEqual(answer.certainty, expected.certainty, accuracy: 1e-5)
                XCTAssertEqual(answer.truncated, expected.truncated)
                for (name, score) in expected.scores {
                    XCTAssertEqual(try XCTUnwrap(answer.scores[name]), score, accuracy: 1e-5)
                }
            }
        }
    }

    func testADamagedBundleIsRefused() throws {
        let copy = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
        try FileManager.default.copyItem(at: url("bundle"), to: copy)
        defer { try? FileManager.default.removeItem(at: copy) }
        try Data("other".utf8).write(to: copy.appendingPathComponent("segments/layer_02.mlpackage/model"))
        XCTAssertThrowsError(try ModelBundle(at: copy)) { error in
            XCTAssertTrue(message(error).contains("checksum differs"), message(error))
        }
        XCTAssertNoThrow(try ModelBundle(at: copy, verify: false))
        try FileManager.default.removeItem(at: copy.appendingPathComponent("tokenizer.json"))
        XCTAssertThrowsError(try ModelBundle(at: copy, verify: false)) { error in
            XCTAssertTrue(message(error).contains("'tokenizer.json' is missing"), message(error))
        }
    }

    func testANewerSchemaAndAnUnknownKeyAreRefused() throws {
        let text = try String(contentsOf: url("bundle/manifest.json"), encoding: .utf8)
        let changes = [
            ("\"schema_version\": 1", "\"schema_version\": 2", "is newer than 1"),
            ("\"schema_version\": 1", "\"schema_version\": 1, \"colour\": 3", "unknown key 'colour'"),
            ("\"criterion\": \"confidence\"", "\"criterion\": \"luck\"", "luck"),
        ]
        for (old, new, told) in changes {
            XCTAssertTrue(text.contains(old), old)
            let changed = text.replacingOccurrences(of: old, with: new)
            XCTAssertThrowsError(try Manifest(JSON.parse(Array(changed.utf8)), at: "manifest.json")) { error in
                XCTAssertTrue(message(error).contains(told), message(error))
            }
        }
    }

    func testADeadlineStopsAtTheFirstLayerThatLeavesNoTime() throws {
        let policy = try ExitPolicy(criterion: .confidence, thresholds: [1, 1, 1], temperatures: [1, 1, 1, 1])
        var time = 0.0
        var rule = try Deadline(policy: policy, milliseconds: 50, start: 0) { time }
        var stopped: [Bool] = []
        for layer in 1...3 {
            time += 0.016  // 16 ms a layer: after the second, 32 + 1.25 x 16 is more than 50
            stopped.append(rule.stops(after: layer, certainty: 0.5))
        }
        XCTAssertEqual(stopped, [false, true, true])
        XCTAssertThrowsError(try Deadline(policy: policy, milliseconds: 0, start: 0))
    }

    func testAnEmptyTextAndAPairAreRefused() throws {
        let bundle = try ModelBundle(at: url("bundle"))
        let runner = try EarlyExitRunner(bundle: bundle, executor: Stored(golden: bundle.readGolden(), row: 0))
        XCTAssertThrowsError(try runner.predict("  \n"))
        XCTAssertThrowsError(try runner.predict("one", "two"))
        XCTAssertThrowsError(try runner.predict("one", threshold: 1.5))
    }

    private func message(_ error: Error) -> String {
        (error as? EarlyExitError)?.message ?? "\(error)"
    }

    private func url(_ name: String) -> URL {
        Bundle.module.resourceURL!.appendingPathComponent("Vectors").appendingPathComponent(name)
    }

    private func read<T: Decodable>(_ name: String, as type: T.Type) throws -> T {
        let decoder = JSONDecoder()
        decoder.keyDecodingStrategy = .convertFromSnakeCase
        return try decoder.decode(type, from: Data(contentsOf: url(name)))
    }
}

/// Gives out what a model would say, layer by layer.
final class Stored: SegmentExecutor, LayerRunner, @unchecked Sendable {
    private let outputs: [LayerOutput]

    init(outputs: [LayerOutput]) {
        self.outputs = outputs
    }

    /// One of the bundle's golden inputs.
    convenience init(golden: Golden, row: Int) {
        self.init(
            outputs: golden.logits[row].enumerated().map { layer, logits in
                LayerOutput(logits: logits.map(Float.init), lte: golden.lte.map { Float($0[row][layer]) })
            })
    }

    func embed(_ tokens: Tokens) -> any LayerRunner { self }

    func layer(_ layer: Int) -> LayerOutput { outputs[layer - 1] }
}
