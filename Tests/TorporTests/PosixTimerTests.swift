import Testing

@testable import Torpor

@Test func aTimerOfTheKernelsListIsReadAsAnother() {
  let text = """
    ID: 0
    signal: 60/00007fff86e452a8
    notify: signal/pid.2634
    ClockID: 0
    ID: 7
    signal: 34/0000000000000003
    notify: signal/tid.2635
    ClockID: -6
    ID: 8
    signal: 0/0000000000000000
    notify: none/pid.2634
    ClockID: 1

    """
  #expect(
    PosixTimer.parse(Array(text.utf8)) == [
      PosixTimer(id: 0, signal: 60, value: 0x7fff_86e4_52a8, notify: 0, target: 2634, clock: 0),
      PosixTimer(id: 7, signal: 34, value: 3, notify: 4, target: 2635, clock: -6),
      PosixTimer(id: 8, signal: 0, value: 0, notify: 1, target: 2634, clock: 1),
    ])
  #expect(PosixTimer.parse([]).isEmpty)
}
