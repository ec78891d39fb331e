/// Prediction of one named head.
public struct HeadPrediction: Equatable, Sendable {
    /// The class name.
    public let label: String
    /// Class -> probability.
    public let scores: [String: Float]
}

/// Named head of a model. Its labels are HEAD=CLASS, one after the other.
struct NamedHead: Sendable {
    let name: String
    /// Numbers of its labels.
    let labels: Range<Int>
    let classes: [String]

    private static let mostHeads = 6
    private static let mostClasses = 511

    /// The heads in the labels of a model, in their order. `column`: names of their columns, separated by "|". `place`: for messages.
    /// Throws for labels without heads, and for too few or too many columns.
    static func read(_ labels: [String], column: String, at place: String) throws -> [NamedHead] {
        var found: [(name: String, classes: [String])] = []
        for label in labels {
            guard let end = label.unicodeScalars.firstIndex(of: "=") else {
                throw misfit("\(place): labels contains '\(label)': a label of a heads model is HEAD=CLASS")
            }
            let name = String(label[..<end])
            if found.last?.name != name { found.append((name, [])) }
            found[found.count - 1].classes.append(String(label[label.unicodeScalars.index(after: end)...]))
        }
        guard Set(found.map(\.name)).count == found.count else {
            throw misfit("\(place): labels must list the labels of a head one after the other")
        }
        guard found.count <= mostHeads else {
            throw misfit("\(place): labels has \(found.count) heads: a model has at most \(mostHeads)")
        }
        let columns = column.unicodeScalars.split(separator: "|", omittingEmptySubsequences: false).count
        guard columns == found.count else {
            throw misfit("\(place): label_column has \(columns) columns for \(found.count) heads")
        }
        var start = 0
        return try found.map { name, classes in
            guard (2...mostClasses).contains(classes.count) else {
                throw misfit("\(place): labels: head '\(name)' must have 2 to \(mostClasses) classes")
            }
            defer { start += classes.count }
            return NamedHead(name: name, labels: start..<start + classes.count, classes: classes)
        }
    }

    private static func misfit(_ problem: String) -> EarlyExitError {
        EarlyExitError.failure("\(problem). Export the bundle again")
    }
}

extension ModelInfo {
    /// The heads with these names, in the model's order; nil: all. Throws for a name that the model does not have.
    func requested(_ names: [String]?) throws -> [NamedHead] {
        guard let names else { return heads }
        guard kind == .heads else {
            throw EarlyExitError.input("a \(kind.rawValue) model has no named heads: omit the argument heads")
        }
        let known = heads.map(\.name).joined(separator: ", ")
        if let unknown = names.first(where: { name in !heads.contains { $0.name == name } }) {
            throw EarlyExitError.input("this model has no head '\(unknown)': it has \(known)")
        }
        guard !names.isEmpty else {
            throw EarlyExitError.input("no head is requested: give at least one of \(known)")
        }
        return heads.filter { names.contains($0.name) }
    }
}
