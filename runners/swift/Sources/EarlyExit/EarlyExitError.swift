import Foundation

/// Error of this package. Its message is one line with the failure, the place and the remedy.
public struct EarlyExitError: LocalizedError, Equatable, Sendable {
    public enum Kind: Sendable {
        /// Invalid input of the caller, such as an empty text or a threshold out of range.
        case input
        /// Failure of a file, a model or the device.
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
