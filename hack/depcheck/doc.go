// Package depcheck keeps the rules of docs/design.md about who imports whom:
//
//   - the arrows between our packages, all of which are in one table;
//   - one door for each large dependency, so that it can be changed or tested in
//     one place;
//   - code that runs in production imports no package that exists for tests;
//   - no package is named after having no idea of its own (util, common, types).
//
// The rules are data (rules.go), and exceptions are data too, each with its
// reason; an exception that nothing needs any more is an error. Tests are held to
// one rule only: nothing imports hack. It is run by
//
//	go test ./hack/depcheck
package depcheck
