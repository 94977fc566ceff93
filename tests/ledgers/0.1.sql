-- Made by the ledger of 99b4abf: a session of which all is done, one of which the platform was not told, an open one.
BEGIN TRANSACTION;
CREATE TABLE sessions (
    session_id TEXT PRIMARY KEY, filename TEXT NOT NULL, user TEXT NOT NULL, namespace TEXT NOT NULL,
    pod_name TEXT NOT NULL, container_name TEXT NOT NULL, remote_addr TEXT NOT NULL, login_at REAL NOT NULL,
    logout_at REAL, reason TEXT NOT NULL DEFAULT '', exit_code INTEGER, bytes_out INTEGER, bytes_in INTEGER,
    sha256 TEXT, hung_up INTEGER, server TEXT NOT NULL DEFAULT '', cluster TEXT NOT NULL DEFAULT '', size INTEGER, todo INTEGER NOT NULL DEFAULT 0, info TEXT);
INSERT INTO "sessions" VALUES('00000001-0000-4000-8000-000000000000','/data/records/1.cast','zoë','web','shop-0','main','10.0.0.9',1700000001.25,1700000060.5,'the shell has ended',0,500,20,'abababababababababababababababababababababababababababababababab',NULL,'5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e','10.0.0.1',900,0,NULL);
INSERT INTO "sessions" VALUES('00000002-0000-4000-8000-000000000000','/data/records/2.cast','zoë','web','shop-0','main','10.0.0.9',1700000002.25,1700000060.5,'the shell has ended',0,500,20,'abababababababababababababababababababababababababababababababab',NULL,'5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e','10.0.0.1',900,1,'{"namespace": "web", "pod_name": "shop-0", "container_name": "main", "user": "zo\u00eb", "command": [], "extra": {"ticket": "T-1"}, "directory": "", "message": "", "cluster": "10.0.0.1", "context": "", "session_id": "00000002-0000-4000-8000-000000000000", "filename": "/data/records/2.cast", "remote_addr": "10.0.0.9", "login_at": 1700000002.25, "logout_at": null, "reason": "", "exit_code": null, "bytes_out": 0, "bytes_in": 0, "size": null, "sha256": "", "hung_up": null, "named": "", "with_token": false}');
INSERT INTO "sessions" VALUES('00000003-0000-4000-8000-000000000000','/data/records/3.cast','zoë','web','shop-0','main','10.0.0.9',1700000003.25,NULL,'',NULL,NULL,NULL,NULL,NULL,'5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e','10.0.0.1',NULL,0,'{"namespace": "web", "pod_name": "shop-0", "container_name": "main", "user": "zo\u00eb", "command": [], "extra": {"ticket": "T-1"}, "directory": "", "message": "", "cluster": "10.0.0.1", "context": "", "session_id": "00000003-0000-4000-8000-000000000000", "filename": "/data/records/3.cast", "remote_addr": "10.0.0.9", "login_at": 1700000003.25, "logout_at": null, "reason": "", "exit_code": null, "bytes_out": 0, "bytes_in": 0, "size": null, "sha256": "", "hung_up": null, "named": "", "with_token": false}');
CREATE TABLE used_tokens (jti TEXT PRIMARY KEY, expires_at REAL NOT NULL);
INSERT INTO "used_tokens" VALUES('spent',4000000000.0);
CREATE INDEX expiring_tokens ON used_tokens (expires_at);
CREATE INDEX unfinished ON sessions (server) WHERE (logout_at IS NULL OR todo > 0);
COMMIT;
