// Package profile keeps what build steps have read of layers, and says what to
// fetch when a step runs again.
//
// A build that has to wait for its base waits for one read after the other, each
// a round trip. Which reads these are hardly changes from run to run of the same
// command. So they are noted by layer and step, as ranges of the compressed blob
// in the order in which they were needed, and a later run begins with a few wide
// requests for all of them ([Plan]).
//
// A [Store] is a directory with a file for each layer. It can be given to another
// machine, as a whole or as a stream ([Store.Export], [Store.Import]): a digest
// names the same bytes everywhere. A profile is advice: what it says is fetched
// earlier than it is asked for, and a wrong one costs bytes, never a wrong read.
package profile
