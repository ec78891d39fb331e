/// Post-processor of tokenizer.json, which adds the special tokens to one text or a pair.
struct Template: Sendable {
    enum Piece: Sendable {
        case special(id: Int32, type: Int32)
        case first(type: Int32)
        case second(type: Int32)

        var isSpecial: Bool {
            if case .special = self { return true }
            return false
        }
    }

    let single: [Piece]
    let pair: [Piece]

    init(_ json: JSON) throws {
        if json.isNull {  // no special tokens
            (single, pair) = ([.first(type: 0)], [.first(type: 0), .second(type: 1)])
            return
        }
        switch json["type"].string {
        case "TemplateProcessing":
            single = try Template.pieces(json["single"], specials: json["special_tokens"])
            pair = try Template.pieces(json["pair"], specials: json["special_tokens"])
        case "BertProcessing":
            let (start, end) = try Template.ends(json)
            single = [.special(id: start, type: 0), .first(type: 0), .special(id: end, type: 0)]
            pair = single + [.second(type: 1), .special(id: end, type: 1)]
        case "RobertaProcessing":
            let (start, end) = try Template.ends(json)
            single = [.special(id: start, type: 0), .first(type: 0), .special(id: end, type: 0)]
            pair = single + [.special(id: end, type: 0), .second(type: 0), .special(id: end, type: 0)]
        default:
            throw EarlyExitError.failure("unknown post_processor '\(json["type"].string ?? "")'")
        }
    }

    private static func pieces(_ json: JSON, specials: JSON) throws -> [Piece] {
        try (json.array ?? []).flatMap { item -> [Piece] in
            let special = item["SpecialToken"], sequence = item["Sequence"]
            if let name = special["id"].string, let type = special["type_id"].id,
                let ids = specials[name]["ids"].array {
                return ids.compactMap(\.id).map { .special(id: $0, type: type) }
            }
            if let name = sequence["id"].string, let type = sequence["type_id"].id {
                return [name == "A" ? .first(type: type) : .second(type: type)]
            }
            throw EarlyExitError.failure("a post_processor that cannot be understood")
        }
    }

    /// Ids of the first and the last special token.
    private static func ends(_ json: JSON) throws -> (Int32, Int32) {
        guard let start = json["cls"].array?.last?.id, let end = json["sep"].array?.last?.id else {
            throw EarlyExitError.failure("a post_processor without cls or sep")
        }
        return (start, end)
    }
}
