import CLinux
import Linux
import SystemPackage
import Tracing

/// Hands descriptors of ours to the processes that are being built, over a socket that all of them have.
///
/// A process's table is empty but for the socket, which has a higher number than any descriptor of the job. So what is
/// dealt arrives under the lowest numbers, in order: the first as 0 when nothing is there yet.
public final class DescriptorDealer {
  /// Most descriptors in one message. (SCM_MAX_FD, linux/include/net/scm.h)
  public static let largestHand = 253

  private let ours: Descriptor
  /// The number of the socket in every process of the job.
  public let socketNumber: Int32
  private var theirs: Descriptor?

  /// - Parameter floor: above every descriptor number that the job uses.
  public init(above floor: Int32) throws(Failure) {
    var ends: [Int32] = [-1, -1]
    guard socketpair(AF_UNIX, Int32(SOCK_SEQPACKET.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0, &ends) == 0 else {
      throw Failure("Cannot make a socket", Errno(rawValue: clinux_errno()))
    }
    ours = Descriptor(owning: ends[0])
    let other = Descriptor(owning: ends[1])
    // F_DUPFD leaves FD_CLOEXEC off: the first process of the job inherits it.
    let number = try attempt("Cannot open descriptor \(floor)", advice: "raise the limit of open files (ulimit -n)") {
      () throws(Errno) in try systemCall(Int32(SYS_fcntl), Int(other.number), Int(F_DUPFD), Int(floor))
    }
    socketNumber = Int32(number)
    theirs = Descriptor(owning: Int32(number))
  }

  /// Sends `descriptors` and adds to `script` the calls that receive them.
  ///
  /// The script must run before anything is dealt to another process: they read from one socket.
  public func deal(_ descriptors: [Int32], _ script: inout Script) throws(Failure) {
    var index = 0
    while index < descriptors.count {
      let hand = Array(descriptors[index..<min(index + Self.largestHand, descriptors.count)])
      try attempt("Cannot hand \(hand.count) descriptors to a process") { () throws(Errno) in try send(hand) }
      receive(hand.count, &script)
      index += hand.count
    }
  }

  private func send(_ descriptors: [Int32]) throws(Errno) {
    let length = descriptors.count * 4
    let space = Int(clinux_cmsg_space(UInt(length)))
    var control = [UInt8](repeating: 0, count: space)
    control.withUnsafeMutableBytes { bytes in
      // struct cmsghdr: length, level, type, data.
      bytes.storeBytes(of: Int(clinux_cmsg_len(UInt(length))), toByteOffset: 0, as: Int.self)
      bytes.storeBytes(of: Int32(SOL_SOCKET), toByteOffset: 8, as: Int32.self)
      bytes.storeBytes(of: Int32(SCM_RIGHTS), toByteOffset: 12, as: Int32.self)
      for (index, number) in descriptors.enumerated() {
        bytes.storeBytes(of: number, toByteOffset: 16 + index * 4, as: Int32.self)
      }
    }
    var byte: UInt8 = 1
    let socket = ours.number
    try withUnsafeMutablePointer(to: &byte) { byte throws(Errno) in
      var vector = iovec(iov_base: UnsafeMutableRawPointer(byte), iov_len: 1)
      try control.withMutableBytes { control throws(Errno) in
        try withUnsafeMutablePointer(to: &vector) { vector throws(Errno) in
          var message = msghdr()
          message.msg_iov = vector
          message.msg_iovlen = 1
          message.msg_control = control.baseAddress
          message.msg_controllen = control.count
          guard sendmsg(socket, &message, Int32(MSG_NOSIGNAL)) == 1 else {
            throw Errno(rawValue: clinux_errno())
          }
        }
      }
    }
  }

  private func receive(_ count: Int, _ script: inout Script) {
    let space = Int(clinux_cmsg_space(UInt(count * 4)))
    let socket = SyscallProgram.Argument(socketNumber)
    script.add(upTo: 64 + 128 + space + 64) { program in
      let byte = program.reserve(16)
      let control = program.reserve(space)
      let vector = program.reserve(16)
      program.link(from: vector, to: byte)
      program.patch(vector + 8, UInt64(1))
      // struct msghdr: name, namelen, iov, iovlen, control, controllen, flags.
      let message = program.reserve(56)
      program.link(from: message + 16, to: vector)
      program.patch(message + 24, UInt64(1))
      program.link(from: message + 32, to: control)
      program.patch(message + 40, UInt64(space))
      program.call(Int32(SYS_recvmsg), socket, .data(message), 0)
    }
  }
}
