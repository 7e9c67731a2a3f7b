// Package fault stands between clients and a registry and makes requests go wrong:
// on the level of HTTP (statuses, headers, bodies) and of TCP (refused, reset, cut,
// stalled and dripping connections), for tests of what a client survives. It also
// asks for tokens that live shortly and redirects to addresses that expire, as large
// registries do. It belongs to a test and lives in its process.
package fault
