// Package session knows which of BuildKit's client sessions may authenticate
// reads of which repository, and gives the registry hosts to ask with their
// credentials.
//
// Credentials never leave a session: each renewal of a token asks the client
// again, through BuildKit's resolver, whose token cache is shared with the pull
// that resolved the image. Without a session that is alive, requests are
// anonymous, which is what public images need.
//
// # Words
//
// A hold lets reads of one repository use the sessions of one caller, from a mount
// to its release, and while layers are resolved. It keeps no list of sessions but a function that gives it, since
// a caller may get more of them. All present holds of a repository serve each
// read of it: a read comes from a page of a file, and names no build.
//
// Therefore who wants to read what others have fetched shows first that one of
// its own sessions may. A proof is that a session has been let in by the registry,
// by a request that was authenticated as this session alone ([Registry.Prove]), or
// that a caller saw it happen ([Registry.Vouch]). It counts for a repository, until
// the session ends or the registry refuses it.
//
// # What is never done
//
// BuildKit waits five seconds for a session that is not there. A read must not,
// so sessions are looked at before they are used.
//
// The sessions of a repository are tried one by one: those with a proof first,
// those that were refused lately last, for one client may know nothing of a
// registry that another has a login for.
//
// Nothing is stored: what a session may do ends with it.
//
// # Locks
//
// Registry.mu only. The functions of holds, and checks, are called without it;
// under it nothing is called but the session manager's lookup, which does not wait.
package session
