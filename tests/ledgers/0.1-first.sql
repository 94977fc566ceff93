-- Made by the ledger of f57ed3b: a session that has ended, and one that was open when the server died.
BEGIN TRANSACTION;
CREATE TABLE sessions (
    session_id TEXT PRIMARY KEY, filename TEXT NOT NULL, user TEXT NOT NULL, namespace TEXT NOT NULL,
    pod_name TEXT NOT NULL, container_name TEXT NOT NULL, remote_addr TEXT NOT NULL, login_at REAL NOT NULL,
    logout_at REAL, reason TEXT NOT NULL DEFAULT '', exit_code INTEGER, bytes_out INTEGER, bytes_in INTEGER,
    sha256 TEXT);
INSERT INTO "sessions" VALUES('00000001-0000-4000-8000-000000000000','/data/records/1.cast','alice','web','shop-0','main','10.0.0.9',1700000001.25,1700000060.5,'the shell has ended',0,500,20,'abababababababababababababababababababababababababababababababab');
INSERT INTO "sessions" VALUES('00000002-0000-4000-8000-000000000000','/data/records/2.cast','alice','web','shop-0','main','10.0.0.9',1700000002.25,NULL,'',NULL,NULL,NULL,NULL);
CREATE TABLE used_tokens (jti TEXT PRIMARY KEY, expires_at REAL NOT NULL);
CREATE INDEX open_sessions ON sessions (session_id) WHERE logout_at IS NULL;
CREATE INDEX expiring_tokens ON used_tokens (expires_at);
COMMIT;
