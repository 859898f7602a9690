//! Titles and lyrics for simulated music tasks. They were written for this file.

/// Song of a simulated task.
pub(super) struct Song {
    pub(super) title: &'static str,
    pub(super) lyric: &'static str,
}

/// All songs. The seed of a task selects one.
pub(super) const SONGS: [Song; 6] = [
    Song {
        title: "Lanterns on the Canal",
        lyric: "[Verse]\nThe last tram hums along the wire\nYour scarf is redder than the fire\nWe count the lanterns two by two\n\
                And every second one is you\n[Chorus]\nLet the water carry what we don’t say\nLet the water carry it away\n\
                If the morning finds us here\nTell it we were near\n[Verse 2]\nA barge goes by with sleeping sails\n\
                The baker hangs his coat on nails\nThe bread is early, so are we\nThe town belongs to two or three\n\
                [Chorus]\nLet the water carry what we don’t say\nLet the water carry it away\nIf the morning finds us here\n\
                Tell it we were near",
    },
    Song {
        title: "Paper Weather",
        lyric: "[Verse]\nI drew a cloud above the door\nAnd left it dripping on the floor\nYou brought a sun of yellow thread\n\
                And pinned it high above the bed\n[Chorus]\nPaper weather, paper rain\nFold me up and start again\n\
                When the real wind comes to blow\nWe’ll be ready, we will know\n[Verse 2]\nThe forecast hangs on kitchen string\n\
                It promises us everything\nA storm of blue, a crayon breeze\nA thousand scissored maple trees\n[Chorus]\n\
                Paper weather, paper rain\nFold me up and start again\nWhen the real wind comes to blow\n\
                We’ll be ready, we will know",
    },
    Song {
        title: "Night Shift Radio",
        lyric: "[Verse]\nFour in the morning, coffee black\nThe static sings its small talk back\nA trucker asks for something slow\n\
                For someone that he used to know\n[Chorus]\nStay on the line, stay on the air\nThere’s always somebody out there\n\
                Turn it low and let it glow\nNight shift radio\n[Verse 2]\nThe nurse is dancing in the hall\nThe guard is leaning on the wall\n\
                One needle drops, the whole town sways\nWe’ll sleep on other people’s days\n[Chorus]\nStay on the line, stay on the air\n\
                There’s always somebody out there\nTurn it low and let it glow\nNight shift radio",
    },
    Song {
        title: "Salt and Bicycle Bells",
        lyric: "[Verse]\nDown the dunes with both hands free\nYou rang your bell to greet the sea\nThe gulls wrote letters overhead\n\
                I kept the one you never read\n[Chorus]\nSalt on our shoulders, sand in our shoes\nNothing to win and nothing to lose\n\
                Ring it once for going home\nRing it twice for don’t\n[Verse 2]\nThe kiosk man has closed his shade\n\
                We split the last of lemonade\nThe sun rolls up its orange rope\nAnd leaves us half a mile of hope\n[Chorus]\n\
                Salt on our shoulders, sand in our shoes\nNothing to win and nothing to lose\nRing it once for going home\n\
                Ring it twice for don’t",
    },
    Song {
        title: "The Cartographer’s Waltz",
        lyric: "[Verse]\nI mapped the creases of your sleeve\nThe northern pass, the road to leave\nI inked a harbour, small and round\n\
                And called it something I had found\n[Chorus]\nOne two three, turn the page\nEvery coast will change with age\n\
                One two three, mind the fold\nWarm to the south and north to the cold\n[Verse 2]\nThe compass spins when you come in\n\
                It points to where the stairs begin\nI’ve lost the legend and the scale\nA waltz will do where numbers fail\n\
                [Chorus]\nOne two three, turn the page\nEvery coast will change with age\nOne two three, mind the fold\n\
                Warm to the south and north to the cold",
    },
    Song {
        title: "Grüße vom Dach",
        lyric: "[Strophe]\nDie Stadt liegt still im Wäscheduft\nEin Drachen lehnt sich an die Luft\nWir zählen Schornsteine im Takt\n\
                Und haben Brot und Zeit gepackt\n[Refrain]\nGrüße vom Dach, von ganz weit oben\nDie Wolken haben sich verschoben\n\
                Ruf nicht so laut, wir hör’n dich schon\nEin Echo hat sein eigner Ton\n[Strophe 2]\nDer Nachbar stimmt sein altes Blech\n\
                Die Amsel findet’s etwas frech\nDann fällt der Abend, sanft und schwer\nUnd keiner muss woanders her\n\
                [Refrain]\nGrüße vom Dach, von ganz weit oben\nDie Wolken haben sich verschoben\n\
                Ruf nicht so laut, wir hör’n dich schon\nEin Echo hat sein eigner Ton",
    },
];
