/// Members of one JSON object, read strictly: unknown keys, missing keys and values of other types are errors, so that
/// no value is guessed.
struct Fields {
    private let json: JSON
    private let place: String

    /// `place`: path of the object, for error messages.
    init(_ json: JSON, at place: String, needed: [String], optional: [String] = []) throws {
        guard let members = json.object else { throw Fields.misfit(at: place) }
        let keys = Set(members.map(\.key))
        if let unknown = keys.subtracting(needed).subtracting(optional).min() {
            throw EarlyExitError.failure(
                "\(place): unknown key '\(unknown)'. Upgrade the EarlyExit package, or export the bundle again")
        }
        if let missing = needed.filter({ !keys.contains($0) }).min() {
            throw EarlyExitError.failure("\(place): key '\(missing)' is missing. Export the bundle again")
        }
        self.json = json
        self.place = place
    }

    /// Value of a key, read by an accessor of JSON: `try fields.get("layers", \.int)`.
    func get<T>(_ key: String, _ type: KeyPath<JSON, T?>) throws -> T {
        try Fields.typed(json[key], type, at: "\(place): \(key)")
    }

    /// Value of an optional key; nil if it is missing or null.
    func find<T>(_ key: String, _ type: KeyPath<JSON, T?>) throws -> T? {
        json[key].isNull ? nil : try get(key, type)
    }

    /// Whole number of at least `least`.
    func whole(_ key: String, from least: Int) throws -> Int {
        let value = try get(key, \.int)
        guard value >= least else {
            throw EarlyExitError.failure(
                "\(place): \(key) is \(value): it must be at least \(least). Export the bundle again")
        }
        return value
    }

    func list<T>(_ key: String, _ type: KeyPath<JSON, T?>) throws -> [T] {
        try items(key) { try Fields.typed($0, type, at: $1) }
    }

    /// List under a key; `item` reads each value, and receives its path.
    func items<T>(_ key: String, _ item: (JSON, String) throws -> T) throws -> [T] {
        try get(key, \.array).enumerated().map { try item($1, "\(place): \(key)[\($0)]") }
    }

    /// Value under a key, read by `item`.
    func one<T>(_ key: String, _ item: (JSON, String) throws -> T) throws -> T {
        try item(json[key], "\(place): \(key)")
    }

    func dictionary<T>(_ key: String, _ item: (JSON, String) throws -> T) throws -> [String: T] {
        var found: [String: T] = [:]
        for member in try get(key, \.object) {
            found[member.key] = try item(member.value, "\(place): \(key): \(member.key)")
        }
        return found
    }

    func has(_ key: String) -> Bool {
        !json[key].isNull
    }

    static func typed<T>(_ json: JSON, _ type: KeyPath<JSON, T?>, at place: String) throws -> T {
        guard let value = json[keyPath: type] else { throw misfit(at: place) }
        return value
    }

    /// List of numbers.
    static func numbers(_ json: JSON, at place: String) throws -> [Double] {
        try typed(json, \.array, at: place).enumerated().map { try typed($1, \.double, at: "\(place)[\($0)]") }
    }

    static func misfit(at place: String) -> EarlyExitError {
        .failure("\(place): unexpected value. Export the bundle again")
    }
}
