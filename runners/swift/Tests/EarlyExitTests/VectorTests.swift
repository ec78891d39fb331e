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
        XCTAssertEqual(Set(tokenizers.keys), ["albert", "bert", "deberta", "mmbert", "mpnet", "roberta", "unigram"])
    }

    func testWordsEqual() throws {
        struct Case: Decodable {
            let tokenizer: String
            let maxLength: Int
            let texts: [String]
            let tokens, starts, ends: [Int]
        }
        var tokenizers: [String: Tokenizer] = [:]
        let vectors = try Vectors.read("words.json", as: [Case].self)
        XCTAssertGreaterThan(vectors.count, 100)
        for vector in vectors {
            let text = vector.texts[0]
            let file = Vectors.url("\(vector.tokenizer).json")
            let tokenizer =
                try tokenizers[vector.tokenizer] ?? Tokenizer(file: file, maxLength: vector.maxLength, words: true)
            tokenizers[vector.tokenizer] = tokenizer
            let words = try XCTUnwrap(tokenizer.encode(text).words)
            XCTAssertEqual(words.tokens, vector.tokens, "\(vector.tokenizer): \(text)")
            XCTAssertEqual(words.places, zip(vector.starts, vector.ends).map { $0..<$1 }, "\(vector.tokenizer): \(text)")
            let stripped = Tokenizer.stripped(text.unicodeScalars)
            let starts = words.ranges.map { stripped.distance(from: stripped.startIndex, to: $0.lowerBound) }
            XCTAssertEqual(starts, vector.starts, text)
        }
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
        for file in ["policies.json", "newer_policies.json", "decisions.json"] {
            let vectors = try Vectors.json(file).array ?? []
            XCTAssertGreaterThan(vectors.count, 80)
            for (number, vector) in vectors.enumerated() { try await check(vector, "\(file)[\(number)]") }
        }
    }

    /// Compares certainties and exit layer with those of a test vector, whose policy is read as from a manifest.
    private func check(_ vector: JSON, _ place: String) async throws {
        let outputs = ["logits", "lte", "certainty", "exit_layer"]
        let members = try XCTUnwrap(vector.object)
        let policy = try ExitPolicy(.object(members.filter { !outputs.contains($0.key) }), at: place)
        let layers = try XCTUnwrap(vector["logits"].array)
        let several = layers[0].array?.first?.array != nil
        let decisions = layers.map { layer -> [[Float]] in
            let rows = several ? (layer.array ?? []) : [layer]
            return rows.map { ($0.array ?? []).map { Float($0.double ?? .nan) } }
        }
        let lte = vector["lte"].array?.map { Float($0.double ?? .nan) }
        try policy.check(outputs: decisions[0][0].count, lte: lte != nil, several: several)
        let rows = decisions.enumerated().map { LayerOutput(logits: $1.flatMap { $0 }, lte: lte?[$0]) }
        var memory: ExitPolicy.Memory?
        for (layer, row) in rows.enumerated() {
            let expected = try XCTUnwrap(vector["certainty"].array?[layer].double)
            let certainty = try policy.certainty(
                layer: layer + 1, decisions: decisions[layer], lte: row.lte, memory: &memory)
            XCTAssertEqual(Double(certainty), expected, accuracy: 1e-5 * max(1, abs(expected)), place)
        }
        var loop = try await ExitLoop(
            executor: Stored([rows]), tokens: Tokens(), exits: Array(1...policy.layers), policy: policy, rule: policy
        ) { decisions[$1 - 1] }
        var last = 0
        while let step = try await loop.next() { last = step.layer }
        XCTAssertEqual(last, vector["exit_layer"].int, place)
    }

    func testPoliciesThatContradictThemselvesAreRejected() throws {
        let plain = [Threshold](repeating: .number(0.5), count: 2)
        func policy(
            _ criterion: Criterion = .confidence, _ thresholds: [Threshold]? = nil, patience: Int = 1,
            off: Set<Int> = [], weights: [[Double]] = []
        ) throws -> ExitPolicy {
            try ExitPolicy(
                criterion: criterion, thresholds: thresholds ?? plain, temperatures: [1, 1, 1], patience: patience,
                off: off, weights: weights)
        }
        assertFails(try policy(patience: 4), "it must be from 1 to 3")
        assertFails(try policy(.patience, [.number(1), .number(1)], patience: 2), "and 1 with the criterion patience")
        assertFails(try policy(off: [3]), "exits [3] cannot be switched off")
        assertFails(try policy(.learned), "'learned' has 0 rows of weights for 3 layers")
        assertFails(try policy(weights: [[1], [1]]), "'confidence' has 2 rows of weights")
        assertFails(try policy(.confidence, [.perClass([0.5, 2]), .number(0.5)]), "threshold 2.0 is out of range")
        let perClass = try policy(.confidence, [.perClass([0.5, 0.9]), .number(0.5)])
        assertFails(try perClass.check(outputs: 3, lte: false), "a threshold has 2 numbers")
        XCTAssertEqual(try perClass.with(threshold: 0.5), try policy())
        let learned = try policy(.learned, weights: [[Double]](repeating: [0, 0, 0], count: 2))
        assertFails(try learned.check(outputs: 2, lte: true), "'learned' has 3 weights at a layer: this model needs 7")
        assertFails(try policy(.agreement).check(outputs: 1, lte: true), "'agreement' needs class probabilities")
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
                    .map { deadline.stops(after: $0, certainty: $1, logits: []) }
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
        let labels: [String]?
        let spans: [ExpectedSpan]?
        let heads: [String: ExpectedHead]?

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

    /// A list of start, end, label and score.
    private struct ExpectedSpan: Decodable {
        let start, end: Int
        let label: String
        let score: Float

        init(from decoder: Decoder) throws {
            var list = try decoder.unkeyedContainer()
            start = try list.decode(Int.self)
            end = try list.decode(Int.self)
            label = try list.decode(String.self)
            score = try list.decode(Float.self)
        }
    }

    /// A list of label and scores.
    private struct ExpectedHead: Decodable {
        let label: String
        let scores: [String: Float]

        init(from decoder: Decoder) throws {
            var list = try decoder.unkeyedContainer()
            label = try list.decode(String.self)
            scores = try list.decode([String: Float].self)
        }
    }

    private struct Cases: Decodable {
        struct Batch: Decodable {
            let threshold: Double?
            let heads: [String]?
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
                    single.append(try await runner.predict(text[0], pair, threshold: batch.threshold, heads: batch.heads))
                }
                let together =
                    pairs.isEmpty
                    ? try await runner.predictBatch(
                        cases.texts.map { $0[0] }, threshold: batch.threshold, heads: batch.heads)
                    : try await runner.predictBatch(pairs, threshold: batch.threshold)
                for answers in [single, together] {
                    XCTAssertEqual(answers.count, batch.answers.count, name)
                    for (row, answer) in answers.enumerated() {
                        assert(answer, is: batch.answers[row], name, cases.texts[row][0])
                    }
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
                for (answer, expected) in zip(answers, stream) { assert(answer, is: expected, name, text[0]) }
            }
        }
    }

    private func assert(_ answer: Prediction, is expected: Expected, _ name: String, _ text: String) {
        XCTAssertEqual(answer.labels, expected.labels, name)
        XCTAssertEqual(answer.heads?.mapValues(\.label), expected.heads?.mapValues(\.label), name)
        for (head, expected) in expected.heads ?? [:] {
            XCTAssertEqual(answer.heads?[head]?.scores.count, expected.scores.count, name)
            for (label, score) in expected.scores {
                XCTAssertEqual(answer.heads?[head]?.scores[label] ?? .nan, score, accuracy: 1e-5, name)
            }
        }
        XCTAssertEqual(answer.spans?.map(\.label), expected.spans?.map(\.label), name)
        for (span, expected) in zip(answer.spans ?? [], expected.spans ?? []) {
            let scalars = text.unicodeScalars
            let places = [span.range.lowerBound, span.range.upperBound].map { scalars.distance(from: scalars.startIndex, to: $0) }
            XCTAssertEqual(places, [expected.start, expected.end], name)
            XCTAssertEqual(span.score, expected.score, accuracy: 1e-5, name)
        }
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
