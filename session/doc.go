// Package session knows which of BuildKit's client sessions may authenticate
// reads of which repository, and gives the registry hosts to ask with their
// credentials.
//
// Credentials never leave a session: each renewal of a token asks the client
// again, through BuildKit's resolver, whose token cache is shared with the pull
// that resolved the image. A session is used for the repository that it was
// attached to and for no other; without one that is alive, requests are
// anonymous, which is what public images need.
//
// BuildKit waits five seconds for a session that is not there. A read must not,
// so sessions are looked at before they are used, and forgotten once gone.
//
// The sessions of a repository are tried one by one, the one that worked last
// first: one client may know nothing of a registry that another has a login for.
//
// Locks: Registry.mu only; nothing is called under it but the session manager's
// lookup, which does not wait.
package session
