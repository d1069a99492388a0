import Files
import Foundation
import Safetensors
import TestSupport
import Testing

/// Headers that must not be believed.
@Suite struct SafetensorsTests {
  private func open(_ header: String, body: Int = 16, length: UInt64? = nil) throws -> SafetensorsFile {
    let text = Array(header.utf8)
    let size = withUnsafeBytes(of: (length ?? UInt64(text.count)).littleEndian) { Array($0) }
    return try SafetensorsFile(content: size + text + [UInt8](repeating: 0, count: body), path: "test")
  }

  private func reason(_ header: String, body: Int = 16, length: UInt64? = nil) -> String {
    do {
      _ = try open(header, body: body, length: length)
      return ""
    } catch { return "\(error)" }
  }

  @Test func goodHeadersAreRead() throws {
    let file = try open(
      #" {"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]}, "\u00e4\n":{"shape":[],"dtype":"I64","data_offsets":[8,16]},"#
        + #""__metadata__":{"format":"pt"}} "#)
    #expect(file.entries["a"]?.shape == [2, 1] && file.entries["ä\n"]?.count == 1)
    #expect(file.metadata == ["format": "pt"])
    #expect(try open("{}", body: 0).entries.isEmpty)
  }

  @Test func badHeadersAreRefused() {
    func array(_ shape: String, _ offsets: String, _ dtype: String = "F32") -> String {
      #"{"dtype":"\#(dtype)","shape":\#(shape),"data_offsets":\#(offsets)}"#
    }
    for (header, expected) in [
      (#"{"a":\#(array("[2]", "[0,8]")),"a":\#(array("[2]", "[8,16]"))}"#, "occurs twice"),
      (#"{"a":\#(array("[2]", "[0,8]")),"b":\#(array("[2]", "[4,12]"))}"#, "overlaps"),
      (#"{"a":\#(array("[2]", "[0,12]"))}"#, "do not fit"),
      (#"{"a":\#(array("[8]", "[0,32]"))}"#, "do not fit"),
      (#"{"a":\#(array("[2]", "[8,0]"))}"#, "do not fit"),
      (#"{"a":\#(array("[4294967296,4294967296]", "[0,8]"))}"#, "impossible shape"),
      (#"{"a":\#(array("[99999999999999999999]", "[0,8]"))}"#, "too large"),
      (#"{"a":\#(array("[-2]", "[0,8]"))}"#, "not a whole number"),
      (#"{"a":\#(array("[2]", "[0,8]", "F8"))}"#, "F8 is not supported"),
      (#"{"a":{"dtype":"F32","shape":[2]}}"#, "missing"),
      (#"{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, "occurs twice"),
      (#"{"a":1}"#, "a is no JSON object"), (#"{"a"#, "without end"), ("{} x", "behind its end"),
      ("", "end too early"), ("[]", "the header is no JSON object"), (#"{"a":{"size":1}}"#, "size is unknown"),
      (#"{"__metadata__":{"a":1}}"#, "no string"),
      (#"{"\ud800":1}"#, "surrogate"),
    ] {
      #expect(reason(header).contains(expected), "\(header): \(reason(header))")
    }
    #expect(reason("{}", length: .max).contains("claims"))
    #expect(reason("{}", length: 100).contains("claims"))
    #expect(throws: FileError.self) { try SafetensorsFile(content: [1, 2, 3], path: "test") }
  }

  @Test func halfPrecisionIsExact() throws {
    // 1, −2, the smallest subnormal, infinity, 65504.
    let halves: [UInt16] = [0x3C00, 0xC000, 0x0001, 0x7C00, 0x7BFF, 0x8000]
    let text = Array(#"{"a":{"dtype":"F16","shape":[6],"data_offsets":[0,12]}}"#.utf8)
    let bytes =
      withUnsafeBytes(of: UInt64(text.count).littleEndian) { Array($0) } + text
      + halves.flatMap { [UInt8(truncatingIfNeeded: $0), UInt8($0 >> 8)] }
    let values = try SafetensorsFile(content: bytes, path: "test").floats("a")
    #expect(values == [1, -2, 0x1p-24, .infinity, 65504, 0])
    #expect(values[5].sign == .minus)
  }
}
