-- A database of fedstill at revision 866284a, before schemas had numbers; every table has rows. Never change it.
BEGIN TRANSACTION;
CREATE TABLE active_tasks (
	name VARCHAR(64) NOT NULL,
	version INTEGER NOT NULL,
	PRIMARY KEY (name)
);
INSERT INTO "active_tasks" VALUES('cars',1);
INSERT INTO "active_tasks" VALUES('birds',1);
CREATE TABLE changes (
	generation INTEGER NOT NULL,
	PRIMARY KEY (generation)
);
INSERT INTO "changes" VALUES(6);
CREATE TABLE task_versions (
	name VARCHAR(64) NOT NULL,
	version INTEGER NOT NULL,
	class_names VARCHAR NOT NULL,
	trunk VARCHAR(64) NOT NULL,
	parameters VARCHAR(64) NOT NULL,
	prompts VARCHAR NOT NULL,
	latency_ms FLOAT NOT NULL,
	utility FLOAT NOT NULL,
	accuracy FLOAT NOT NULL,
	created VARCHAR(32) NOT NULL,
	PRIMARY KEY (name, version)
);
INSERT INTO "task_versions" VALUES('birds',1,'["class0", "class1"]','aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','4b29c24d1a43fb8f6e89c4779543a236ba8dd932ae4f301138962fc4b40b0622','[2]',300.0,0.5,0.75,'2026-07-01T12:40:00+00:00');
INSERT INTO "task_versions" VALUES('birds',2,'["class0", "class1", "class2"]','aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','5b5875f967df0f26f6296da04e97d2f4c71f78913fa32dd76f899a3f380c6082','[2]',600.0,1.0,0.875,'2026-07-01T12:41:00+00:00');
INSERT INTO "task_versions" VALUES('cars',1,'["class0", "class1"]','aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','48c2f97bbc74582cbaa07aa398f1c7f239a8b8a9864aa521138a0f90a6e3d9f8','[2]',600.0,1.0,0.0,'2026-07-01T12:42:00+00:00');
INSERT INTO "task_versions" VALUES('gone',1,'["class0", "class1"]','aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','8b125bae37289d741da4d6897479e2a812ca29c4ee30f4bffd40bd4c8dde17a2','[2]',600.0,1.0,0.0,'2026-07-01T12:43:00+00:00');
COMMIT;
