import Foundation

/// What went wrong, in one line: what, where, and how to mend it.
public struct EarlyExitError: LocalizedError, Equatable, Sendable {
    public enum Kind: Sendable {
        /// The caller asked for something that cannot be: an empty text, a threshold out of range.
        case input
        /// Something failed: a file, a model, this device.
        case failure
    }

    public let kind: Kind
    public let message: String

    public var errorDescription: String? { message }

    static func input(_ message: String) -> EarlyExitError {
        EarlyExitError(kind: .input, message: message)
    }

    static func failure(_ message: String) -> EarlyExitError {
        EarlyExitError(kind: .failure, message: message)
    }
}
