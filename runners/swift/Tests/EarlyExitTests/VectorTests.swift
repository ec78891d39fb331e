import Foundation
import XCTest

@testable import EarlyExit

/// Comparison with the outputs of the Python runtime in the test vectors.
final class VectorTests: XCTestCase {
    func testTokenIdsEqual() throws {
        struct Case: Decodable {
            let tokenizer: String
            let maxLength: Int
            let texts: [String]
            let inputIds, tokenTypeIds: [Int32]
            let truncated: Bool
        }
        var tokenizers: [String: Tokenizer] = [:]
        for vector in try Vectors.read("tokenization.json", as: [Case].self) {
            let tokenizer =
                try tokenizers[vector.tokenizer]
                ?? Tokenizer(file: Vectors.url("\(vector.tokenizer).json"), maxLength: vector.maxLength)
            tokenizers[vector.tokenizer] = tokenizer
            let tokens = tokenizer.encode(vector.texts[0], vector.texts.count > 1 ? vector.texts[1] : nil)
            XCTAssertEqual(tokens.inputIds, vector.inputIds, "\(vector.tokenizer): \(vector.texts)")
            XCTAssertEqual(tokens.tokenTypeIds, vector.tokenTypeIds, "\(vector.tokenizer): \(vector.texts)")
            XCTAssertEqual(tokens.truncated, vector.truncated, "\(vector.tokenizer): \(vector.texts)")
        }
        XCTAssertEqual(Set(tokenizers.keys), ["albert", "bert", "mpnet", "roberta", "unigram"])
    }

    func testPaddingEquals() throws {
        struct Padded: Decodable {
            let inputIds, tokenTypeIds, attentionMask: [Int32]
        }
        struct Case: Decodable {
            let lengths: [Int]
            let padTokenId: Int32
            let inputIds, tokenTypeIds: [Int32]
            let padded: Padded?
        }
        for vector in try Vectors.read("padding.json", as: [Case].self) {
            var tokens = Tokens()
            for (id, type) in zip(vector.inputIds, vector.tokenTypeIds) { tokens.append(id, type: type) }
            guard let expected = vector.padded else {
                assertFails(
                    try tokens.padded(toOneOf: vector.lengths, padTokenId: vector.padTokenId), "more than the segments accept")
                continue
            }
            let padded = try tokens.padded(toOneOf: vector.lengths, padTokenId: vector.padTokenId)
            XCTAssertEqual(padded.inputIds, expected.inputIds)
            XCTAssertEqual(padded.tokenTypeIds, expected.tokenTypeIds)
            XCTAssertEqual(padded.attentionMask, expected.attentionMask)
        }
    }

    func testCertaintiesAndExitsEqual() async throws {
        struct Case: Decodable {
            let criterion: String
            let thresholds, temperatures: [Double]
            let tolerance: Double
            let logits: [[Float]]
            let lte, certainty: [Float]
            let exitLayer: Int
        }
        for vector in try Vectors.read("policies.json", as: [Case].self) {
            let policy = try ExitPolicy(
                criterion: XCTUnwrap(Criterion(rawValue: vector.criterion)), thresholds: vector.thresholds,
                temperatures: vector.temperatures, tolerance: vector.tolerance)
            let outputs = zip(vector.logits, vector.lte).map { LayerOutput(logits: $0, lte: $1) }
            var memory: ExitPolicy.Memory?
            for (layer, output) in outputs.enumerated() {
                let certainty = try policy.certainty(layer: layer + 1, output: output, memory: &memory)
                XCTAssertEqual(certainty, vector.certainty[layer], accuracy: 1e-5, vector.criterion)
            }
            var loop = try await ExitLoop(
                executor: Stored([outputs]), tokens: Tokens(), exits: Array(1...policy.layers), policy: policy,
                rule: policy)
            var last = 0
            while let step = try await loop.next() { last = step.layer }
            XCTAssertEqual(last, vector.exitLayer, vector.criterion)
        }
    }

    func testDeadlinesStopAlike() throws {
        struct Case: Decodable {
            struct Call: Decodable {
                let milliseconds: Double
                let opening, times: [Double]
                let certainty: [Float]
                let stops: [Bool]
            }
            let exits: [Int]
            let thresholds: [Double]
            let missProbability: Double
            let calls: [Call]
            let margin: Double
        }
        for vector in try Vectors.read("deadlines.json", as: [Case].self) {
            let policy = try ExitPolicy(
                criterion: .confidence, thresholds: vector.thresholds,
                temperatures: [Double](repeating: 1, count: vector.thresholds.count + 1))
            let estimator = try StepEstimator(missProbability: vector.missProbability)
            for call in vector.calls {
                var times = call.times[...]
                let opening = Dictionary(uniqueKeysWithValues: zip(vector.exits, call.opening))
                var deadline = Deadline(
                    policy: policy, exits: vector.exits,
                    end: try Deadline.end(of: call.milliseconds, start: call.times[0]), estimator: estimator,
                    opening: { opening[$0, default: .infinity] }
                ) { times.removeFirst() }
                let stops = zip(vector.exits.prefix(call.stops.count), call.certainty)
                    .map { deadline.stops(after: $0, certainty: $1) }
                XCTAssertEqual(stops, call.stops, "\(call.milliseconds) ms, exits \(vector.exits)")
            }
            XCTAssertEqual(estimator.margin, vector.margin, accuracy: 1e-9)
        }
        assertFails(try StepEstimator(missProbability: 0), "missProbability is 0.0")
        for milliseconds in [0, -1, Double.nan] {
            assertFails(try Deadline.end(of: milliseconds, start: 0), "it must be above 0")
        }
    }

    // MARK: Whole bundles

    private struct Expected: Decodable {
        let label: Label
        let scores: [String: Float]
        let exitLayer: Int
        let certainty: Float
        let truncated: Bool
        let stoppedBy: String?
        let model: String

        enum Label: Decodable, Equatable {
            case name(String)
            case value(Float)

            init(from decoder: Decoder) throws {
                let container = try decoder.singleValueContainer()
                let name = try? container.decode(String.self)
                self = try name.map(Label.name) ?? .value(container.decode(Float.self))
            }
        }
    }

    private struct Cases: Decodable {
        struct Batch: Decodable {
            let threshold: Double?
            let answers: [Expected]
        }
        let texts: [[String]]
        let batches: [Batch]
        let streams: [[Expected]]
    }

    func testPredictionsEqual() async throws {
        for name in try Vectors.models() {
            let runner = try runner(name)
            let cases = try Vectors.read("models/\(name)/answers.json", as: Cases.self)
            let pairs = cases.texts.compactMap { $0.count == 2 ? ($0[0], $0[1]) : nil }
            XCTAssertEqual(runner.manifest.model.takesPairs, !pairs.isEmpty, name)
            for batch in cases.batches {
                // One by one, then as a batch: the executor returns the stored rows in order.
                var single: [Prediction] = []
                for text in cases.texts {
                    let pair = text.count == 2 ? text[1] : nil
                    single.append(try await runner.predict(text[0], pair, threshold: batch.threshold))
                }
                let together =
                    pairs.isEmpty
                    ? try await runner.predictBatch(cases.texts.map { $0[0] }, threshold: batch.threshold)
                    : try await runner.predictBatch(pairs, threshold: batch.threshold)
                for answers in [single, together] {
                    XCTAssertEqual(answers.count, batch.answers.count, name)
                    for (answer, expected) in zip(answers, batch.answers) { assert(answer, is: expected, name) }
                }
            }
        }
    }

    func testStreamedPredictionsEqual() async throws {
        for name in try Vectors.models() {
            let runner = try runner(name)
            let cases = try Vectors.read("models/\(name)/answers.json", as: Cases.self)
            for (text, stream) in zip(cases.texts, cases.streams) {
                var answers: [Prediction] = []
                for try await answer in try runner.stream(text[0], text.count == 2 ? text[1] : nil) {
                    answers.append(answer)
                }
                XCTAssertEqual(answers.map(\.exitLayer), runner.manifest.exits, name)
                for (answer, expected) in zip(answers, stream) { assert(answer, is: expected, name) }
            }
        }
    }

    private func assert(_ answer: Prediction, is expected: Expected, _ name: String) {
        switch expected.label {
        case .name(let label):
            XCTAssertEqual(answer.label, label, name)
            XCTAssertNil(answer.value, name)
            XCTAssertEqual(Set(answer.scores.keys), Set(expected.scores.keys), name)
            for (label, score) in expected.scores {
                XCTAssertEqual(answer.scores[label] ?? .nan, score, accuracy: 1e-5, name)
            }
        case .value(let value):
            XCTAssertNil(answer.label, name)
            XCTAssertEqual(answer.value ?? .nan, value, accuracy: 1e-5, name)
            XCTAssertEqual(answer.scores, [:], name)
        }
        XCTAssertEqual(answer.exitLayer, expected.exitLayer, name)
        XCTAssertEqual(answer.certainty, expected.certainty, accuracy: 1e-5, name)
        XCTAssertEqual(answer.truncated, expected.truncated, name)
        XCTAssertEqual(answer.stoppedBy?.rawValue, expected.stoppedBy, name)
        XCTAssertNil(answer.late, name)
        XCTAssertEqual(answer.model, expected.model, name)
    }
}
